"""An adapter folder where a model is asked for: opened with its base, generated from, merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from pegboard.build import find_family
from pegboard.errors import ModelError
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard_sdk.peg import Said

Peg = Callable[..., Said]
SCALING = 6 / 2
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": len(ALPHABET) + 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "eos_token_id": len(ALPHABET),
}
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def write_tokenizer(folder: Path, *, template: str | None = None) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = find_family(Registry.discover(), CONFIG).build(CONFIG)
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(parameter.shape, generator=generator) * 0.3 + name.endswith("norm.weight")
        for name, parameter in model.named_parameters()
    }


def merged_by_hand(base: dict[str, Tensor], adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha / r * B A in float64."""
    merged = {name: weight.double() for name, weight in base.items()}
    for name in merged:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            a, b = (adapter[f"{stem}.lora_{side}.weight"].double() for side in "AB")
            merged[name] += SCALING * b @ a
    return merged


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder)
    return folder


@pytest.fixture
def adapter(base: Path) -> Path:
    """An adapter beside its base, which it names relative to itself."""
    folder = base.parent / "run" / "final"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, "base_model_name_or_path": "../../base"}))
    generator, tensors = torch.Generator().manual_seed(6), {}
    for name, weight in weights().items():
        if name.removesuffix(".weight").endswith(TARGETS):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_merge_writes_the_sum(base: Path, adapter: Path, peg: Peg) -> None:
    target = base.parent / "merged"
    said = peg("merge", adapter, target)
    assert said.status == 0
    assert said.out == f"{target}: a complete model in float32\n"
    found = load_file(target / "model.safetensors")
    wanted = merged_by_hand(weights(), load_file(adapter / "adapter_model.safetensors"))
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.double(), wanted[name], rtol=1e-6, atol=1e-6)
    assert json.loads((target / "config.json").read_text()) == {**CONFIG, "dtype": "float32", "torch_dtype": "float32"}
    assert (target / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not list(target.glob("adapter*"))


def test_merge_rounds_once(base: Path, adapter: Path, peg: Peg) -> None:
    plain, narrow = base.parent / "plain", base.parent / "narrow"
    assert peg("merge", adapter, plain).status == peg("merge", adapter, narrow, "--dtype", "bfloat16").status == 0
    wide = load_file(plain / "model.safetensors")
    for name, weight in load_file(narrow / "model.safetensors").items():
        assert torch.equal(weight, wide[name].bfloat16()), name
    assert json.loads((narrow / "config.json").read_text())["dtype"] == "bfloat16"


def test_merged_and_adapted_generate_the_same(base: Path, adapter: Path, peg: Peg) -> None:
    def tokens(folder: Path) -> list[int]:
        said = peg(
            "generate", folder, "hello", "--json", "--dtype", "float32", "--temperature", "0", "--max-tokens", "12"
        )
        assert said.status == 0
        found: list[int] = json.loads(said.out)["token_ids"]
        return found

    assert peg("merge", adapter, base.parent / "merged").status == 0
    assert tokens(adapter) == tokens(base.parent / "merged")
    assert tokens(adapter) != tokens(base)


def test_the_base_may_be_named_in_full(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(adapter, base_model_name_or_path=str(base))
    opened = open_any(Registry.discover(), str(adapter))
    assert opened.adapted is not None
    assert opened.files.location == str(adapter)
    # PEFT writes the path that the base was loaded from, which counts from where the user stands.
    change(adapter, base_model_name_or_path="./base")
    monkeypatch.chdir(base.parent)
    assert open_any(Registry.discover(), str(adapter)).files.config == CONFIG


def test_the_tokenizer_beside_the_adapter_counts(adapter: Path) -> None:
    registry = Registry.discover()
    assert not open_any(registry, str(adapter)).tokenizer(registry).has_chat_template
    write_tokenizer(adapter, template="{{ messages[0]['content'] }}")
    opened = open_any(registry, str(adapter))
    assert opened.tokenizer(registry).has_chat_template
    assert set(opened.files.files) == {"tokenizer.json", "tokenizer_config.json"}


def test_a_complete_model_is_opened_as_one(base: Path) -> None:
    assert open_any(Registry.discover(), str(base)).adapted is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": "../gone"}, r"the base model of the adapter in .* cannot be opened: .*\.\./gone"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"modules_to_save": ["lm_head"]}, "not supported: modules_to_save"),
    ],
)
def test_refuses_what_it_cannot_open(adapter: Path, settings: dict[str, Any], message: str) -> None:
    change(adapter, **settings)
    with pytest.raises(ModelError, match=message):
        open_any(Registry.discover(), str(adapter))


def test_refuses_tensors_of_another_rank(adapter: Path, peg: Peg) -> None:
    change(adapter, r=3)
    target = adapter / "merged"
    said = peg("merge", adapter, target)
    assert said.status == 2
    assert "the adapter's tensors do not fit the model" in said.err
    assert not target.exists()


def test_mistakes_of_merging(base: Path, adapter: Path, peg: Peg) -> None:
    (base.parent / "taken").mkdir()
    for arguments, message in (
        ((adapter, base.parent / "taken"), "taken exists"),
        ((base, base.parent / "merged"), "is a complete model: there is nothing to merge"),
        ((adapter, base.parent / "merged", "--dtype", "int8"), "dtype is 'int8'"),
        ((adapter, base.parent / "none" / "merged"), "none does not exist"),
    ):
        said = peg("merge", *arguments)
        assert (said.status, said.out) == (2, "")
        assert message in said.err
        assert "Traceback" not in said.err
    shutil.rmtree(base)
    assert "the base model of the adapter" in peg("merge", adapter, adapter.parent / "merged").err
    assert not (adapter.parent / "merged").exists()
