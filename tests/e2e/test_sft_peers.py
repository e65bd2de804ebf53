"""What a run leaves loads in transformers and PEFT; its first losses are those of a plain loop over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.build import build_model, load_tokenizer, open_model
from pegboard.config import load_config
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import open_data

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

STEPS = 6
# No decay of vectors, Adam's defaults, a warm-up: all of it must be the same in both loops.
OPTIONS = [
    "steps=6",
    "batch.pack=false",
    "batch.size=3",
    "optimizer.weight_decay=0.02",
    "schedule.warmup=2",
    "clip=0.7",
]


def plain_loop(model: Any, config: TrainConfig, toy_model: Path) -> list[float]:
    """Train a transformers model on the same batches with torch's AdamW; return the loss of each step."""
    registry = Registry.discover()
    tokenizer = load_tokenizer(registry, open_model(registry, str(toy_model)))
    batches = open_data(config, registry, tokenizer).train
    schedule = registry.create("schedule", config.schedule)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.optimizer["weight_decay"]},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.optimizer["lr"])
    losses = []
    for step, (_, batch) in zip(range(STEPS), batches, strict=False):
        longest = max(batch.seq_lens)
        ids, labels = (
            torch.zeros(len(batch.seq_lens), longest, dtype=torch.int64),
            torch.full((len(batch.seq_lens), longest), -100),
        )
        parts = zip(batch.input_ids.split(batch.seq_lens), batch.targets.split(batch.seq_lens), strict=True)
        for row, (tokens, targets) in enumerate(parts):
            ids[row, : len(tokens)] = tokens
            labels[row, 1 : len(tokens)] = targets[:-1]
        attended = torch.arange(longest)[None] < torch.tensor(batch.seq_lens)[:, None]
        loss = model(input_ids=ids, attention_mask=attended.long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer["lr"] * schedule.factor(step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits_of(location: Path, ids: list[int]) -> Tensor:
    registry = Registry.discover()
    built = open_any(registry, str(location)).build(registry, platform="cpu", dtype="float32")
    with torch.no_grad():
        return built.model.head(built.model(torch.tensor(ids), built.context([len(ids)], torch.arange(len(ids)))))


def config_of(run: Path) -> TrainConfig:
    return TrainConfig.model_validate(load_config(Registry.discover(), "sft", run / "config.yaml"))


def test_all_weights(tmp_path: Path, train: Callable[..., Path], losses: Any, toy_model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run = train(tmp_path / "run", *OPTIONS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).train()
    expected = plain_loop(theirs, config_of(run), toy_model)
    assert list(losses(run).values()) == pytest.approx(expected, rel=1e-5)

    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(run / "final", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = transformers.AutoTokenizer.from_pretrained(run / "final")("what is two and three?")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(torch.tensor([ids])).logits[0], logits_of(run / "final", ids), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters(tmp_path: Path, train: Callable[..., Path], losses: Any, toy_model: Path, method: str) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    run = train(tmp_path / "run", *OPTIONS, config=method)
    config = config_of(run)
    # The same first values: those that the run drew from its seed.
    registry = Registry.discover()
    adapter = registry.create("adapter", config.adapter)
    built = build_model(
        registry,
        open_model(registry, str(toy_model)),
        platform="cpu",
        dtype="float32",
        adapter=adapter,
        phase="train",
        seed=config.seed,
    )
    settings = json.loads((run / "final" / "adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    theirs = peft.get_peft_model(base, peft.LoraConfig(**{**settings, "inference_mode": False}))
    found = peft.set_peft_model_state_dict(
        theirs, {name: t.clone() for name, t in adapter.tensors(built.model).items()}
    )
    assert not found.unexpected_keys
    expected = plain_loop(theirs.train(), config, toy_model)
    assert list(losses(run).values()) == pytest.approx(expected, rel=1e-5)

    fresh = transformers.AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(fresh, run / "final").eval()
    ids = transformers.AutoTokenizer.from_pretrained(run / "final")("what is two and three?")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(torch.tensor([ids])).logits[0], logits_of(run / "final", ids), atol=1e-4, rtol=0
        )
