"""Layers with a soft cap on their logits, against the reference, beyond one block of queries."""

from __future__ import annotations

import pytest
import torch

from pegboard import reference
from pegboard.types import AttentionInputs, AttentionSpec
from pegboard_sdk.conformance.batches import PagedBatch, random_qkv
from pegboard_sdpa import capped
from pegboard_sdpa.backend import SdpaAttention

BACKEND = SdpaAttention()
CPU = torch.device("cpu")


def layer(**changes: int | None) -> AttentionSpec:
    return AttentionSpec(0, 4, 2, 8, 0.9, softcap=1.7, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capped, "_BLOCK", 8)


@pytest.mark.parametrize("window", [None, 5, 11])
@pytest.mark.parametrize("lens", [[21], [19, 9, 3, 26], [16, 16]])
def test_values_and_gradients_over_blocks(lens: list[int], window: int | None) -> None:
    spec = layer(window=window)
    q, k, v = (x.requires_grad_() for x in random_qkv(spec, sum(lens), torch.float64, CPU, seed=1))
    plan = BACKEND.plan(AttentionInputs(lens, lens), CPU, None)
    out, wanted = BACKEND.attend(q, k, v, spec, plan, None), reference.ragged_attention(q, k, v, spec, lens)
    torch.testing.assert_close(out, wanted)
    upstream = torch.randn_like(out)
    mine, right = (torch.autograd.grad(x, (q, k, v), upstream) for x in (out, wanted))
    torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("window", [None, 6])
def test_over_a_cache(window: int | None) -> None:
    spec = layer(window=window)
    layout = BACKEND.layout(spec, 1, 4, torch.float64)
    batch = PagedBatch(spec, layout, [9, 30, 0], [1, 12, 17], CPU)
    wanted = batch.expected()
    plan = BACKEND.plan(batch.inputs, CPU, layout)
    torch.testing.assert_close(BACKEND.attend(batch.q, batch.k, batch.v, spec, plan, batch.cache), wanted)
    static = PagedBatch(spec, layout, [9, 15, 0], [1, 1, 1], CPU, pad_to=5, pad_pages=5)
    wanted = static.expected()
    plan = BACKEND.plan(static.inputs, CPU, layout)
    torch.testing.assert_close(BACKEND.attend(*static.padded(), spec, plan, static.cache)[:3], wanted)


def test_half_precision_keeps_float32_logits() -> None:
    spec = layer()
    q, k, v = random_qkv(spec, 20, torch.bfloat16, CPU, seed=2)
    plan = BACKEND.plan(AttentionInputs([20], [20]), CPU, None)
    out, wanted = BACKEND.attend(q, k, v, spec, plan, None), reference.ragged_attention(q, k, v, spec, [20])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, wanted.bfloat16(), atol=0.01, rtol=0.01)


def test_nothing_of_the_size_of_all_logits_is_kept() -> None:
    spec = layer()
    q, k, v = (x.requires_grad_() for x in random_qkv(spec, 40, torch.float32, CPU, seed=3))
    saved: list[int] = []
    plan = BACKEND.plan(AttentionInputs([40], [40]), CPU, None)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        BACKEND.attend(q, k, v, spec, plan, None)
    assert max(saved) == q.numel() < 40 * 40
