"""Adapters of the embeddings in slots, against models whose embeddings are changed, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError
from pegboard_lora import LoraAdapter
from pegboard_lora.files import PREFIX
from pegboard_lora.sites import RowEmbedding
from pegboard_lora.slots import LoraSlots
from pegboard_sdk.toys.model import logits, positions_of, random_model

STEM = f"{PREFIX}model.embed_tokens."


class Changed:
    """An adapter of the embeddings, and the model whose embeddings have it added."""

    def __init__(self, seed: int, rank: int, alpha: int) -> None:
        self.model = random_model(phase="decode")
        weight = self.model.model.model.embed_tokens.weight
        generator = torch.Generator().manual_seed(seed)
        down, up = (
            torch.randn(shape, generator=generator, dtype=torch.float64) / 2
            for shape in ((rank, weight.shape[0]), (weight.shape[1], rank))
        )
        self.tensors: dict[str, Tensor] = {f"{STEM}lora_embedding_A": down, f"{STEM}lora_embedding_B": up}
        self.config: Mapping[str, Any] = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": ["embed_tokens"],
        }
        self.base = weight.detach().clone()
        with torch.no_grad():
            weight += (up @ down).t() * (alpha / rank)


@pytest.fixture
def changed() -> list[Changed]:
    return [Changed(0, 3, 5), Changed(1, 1, 2)]


def slots_of(built: BuiltModel) -> LoraSlots:
    return LoraAdapter.serving(built.model, num_slots=4, max_rank=8, dtype=torch.float64)


def test_each_row_has_the_embedding_of_its_slot(changed: list[Changed]) -> None:
    built, plain = random_model(phase="decode"), random_model(phase="decode")
    slots = slots_of(built)
    ids, lens, which = torch.arange(30, 48), [1, 9, 1, 5, 2], [0, 3, -1, 0, 2]
    models = {0: changed[0].model, 3: changed[1].model, -1: plain, 2: plain}

    def check() -> None:
        ctx = built.context(lens, positions_of(lens))
        ctx.adapter_slots = torch.tensor(which).repeat_interleave(torch.tensor(lens))
        with torch.no_grad():
            found = built.model.head(built.model(ids, ctx))
            right = torch.cat([logits(models[slot], part) for part, slot in zip(ids.split(lens), which, strict=True)])
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)

    slots.load(0, changed[0].tensors, changed[0].config)
    # PEFT puts the base's own embeddings beside the adapter's.
    slots.load(3, {**changed[1].tensors, f"{STEM}base_layer.weight": changed[1].base}, changed[1].config)
    check()
    slots.unload(0)
    models[0] = plain
    check()
    assert isinstance(built.model.model.embed_tokens, RowEmbedding)
    slots.unload(3)
    assert built.model.model.embed_tokens.weight is next(built.model.parameters())


def test_what_does_not_fit_is_said(changed: list[Changed]) -> None:
    built = random_model(phase="decode")
    slots, one = slots_of(built), changed[0]
    with pytest.raises(ModelError, match=r"missing: .*lora_embedding_B"):
        slots.load(0, {f"{STEM}lora_embedding_A": one.tensors[f"{STEM}lora_embedding_A"]}, one.config)
    with pytest.raises(ModelError, match=r"lora_embedding_A is \[3, 9\]"):
        slots.load(0, {**one.tensors, f"{STEM}lora_embedding_A": torch.zeros(3, 9)}, one.config)
    for other in (one.base + 1, one.base[:-1]):
        with pytest.raises(ConfigError, match="embeddings of its own") as caught:
            slots.load(0, {**one.tensors, f"{STEM}base_layer.weight": other}, one.config)
        assert caught.value.fix
    assert not isinstance(built.model.model.embed_tokens, RowEmbedding)


def test_all_linear_means_no_embeddings() -> None:
    built = random_model(phase="decode")
    with pytest.raises(ModelError) as caught:
        slots_of(built).load(0, {}, {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": "all-linear"})
    assert "embed" not in str(caught.value)
