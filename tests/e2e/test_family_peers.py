"""Gemma and Phi trained by the real recipe: losses of a plain loop over transformers, folders that transformers and PEFT load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.opened import open_any
from pegboard.plugins.load import Registry

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
# Sequences are on both sides of this pretrained length.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}),
    "gemma3": ("gemma3_text", GEMMA),
    "phi4-mini": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}),
}


@pytest.fixture(params=FAMILIES)
def family_model(request: pytest.FixtureRequest, tmp_path: Path, toy_model: Path) -> Path:
    """A folder that transformers wrote, with the toy's tokenizer."""
    transformers = pytest.importorskip("transformers")
    model_type, options = FAMILIES[request.param]
    tokenizer = json.loads((toy_model / "config.json").read_text())
    config = transformers.AutoConfig.for_model(
        model_type, **SIZES, **options, vocab_size=tokenizer["vocab_size"], attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(toy_model / name, folder / name)
    return folder


def logits_of(location: Path, ids: list[int]) -> Tensor:
    registry = Registry.discover()
    built = open_any(registry, str(location)).build(registry, platform="cpu", dtype="float32")
    with torch.no_grad():
        return built.model.head(built.model(torch.tensor(ids), built.context([len(ids)], torch.arange(len(ids)))))


def peer_losses(run: Path, folder: Path) -> list[float]:
    """The loss of transformers' model, as it lies in `folder`, over each batch of a run that never changes it."""
    from transformers import AutoModelForCausalLM

    from pegboard.build import load_tokenizer, open_model
    from pegboard.config import load_config
    from pegboard_trainer.config import TrainConfig
    from pegboard_trainer.data import open_data

    registry = Registry.discover()
    config = TrainConfig.model_validate(load_config(registry, "sft", run / "config.yaml"))
    batches = open_data(config, registry, load_tokenizer(registry, open_model(registry, str(folder)))).train
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found = []
    for _, (_, batch) in zip(range(config.steps), batches, strict=False):
        total, count = 0.0, 0
        for ids, targets in zip(
            batch.input_ids.split(batch.seq_lens), batch.targets.split(batch.seq_lens), strict=True
        ):
            with torch.no_grad():
                logits = model(ids[None]).logits[0]
            kept = targets >= 0
            total += torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum").item()
            count += int(kept.sum())
        found.append(total / count)
    return found


def test_all_weights(tmp_path: Path, train: Callable[..., Path], losses: Any, family_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    still = train(tmp_path / "still", f"model={family_model}", "optimizer.lr=1.0e-30")
    assert list(losses(still).values()) == pytest.approx(peer_losses(still, family_model), rel=1e-5)
    run = train(tmp_path / "run", f"model={family_model}", "steps=20")
    values = list(losses(run).values())
    assert sum(values[-3:]) < 0.8 * sum(values[:3])
    loaded, info = AutoModelForCausalLM.from_pretrained(
        run / "final", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = AutoTokenizer.from_pretrained(run / "final")("what is two and three? " * 6)["input_ids"]
    with torch.no_grad():
        wanted = loaded(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(run / "final", ids), wanted, atol=1e-4, rtol=1e-5)


def test_adapters(tmp_path: Path, train: Callable[..., Path], family_model: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    run = train(tmp_path / "run", f"model={family_model}", "adapter.targets=all-linear", config="lora")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        family_model, dtype=torch.float32, attn_implementation="eager"
    )
    loaded = peft.PeftModel.from_pretrained(base, run / "final").eval()
    ids = transformers.AutoTokenizer.from_pretrained(run / "final")("what is two and three?")["input_ids"]
    with torch.no_grad():
        wanted = loaded(torch.tensor([ids])).logits[0]
        with loaded.disable_adapter():
            assert not torch.allclose(loaded(torch.tensor([ids])).logits[0], wanted, atol=1e-3)
    torch.testing.assert_close(logits_of(run / "final", ids), wanted, atol=1e-4, rtol=1e-5)
