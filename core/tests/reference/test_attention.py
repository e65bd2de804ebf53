"""The oracle itself, against torch's own attention and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pegboard.reference import attention, paged_attention, ragged_attention
from pegboard.reference.attention import token
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_torch(window: int | None, causal: bool) -> None:
    q, k, v = tensors((5, 4, 8), (9, 2, 8), (9, 2, 8))
    positions, keys = torch.arange(4, 9)[:, None], torch.arange(9)[None, :]
    mask = keys > positions - (window or 99)
    if causal:
        mask &= keys <= positions
    wanted = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask, scale=0.2, enable_gqa=True
    ).transpose(0, 1)
    torch.testing.assert_close(attention(q, k, v, AttentionSpec(0, 4, 2, 8, 0.2, window, causal=causal)), wanted)


def test_soft_cap_by_hand() -> None:
    q, k, v = torch.tensor([[[6.0]]]), torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[0.0]], [[1.0]]])
    logit = 2 * math.tanh(6 / 2)
    out = attention(q, k, v, AttentionSpec(0, 1, 1, 1, 1.0, softcap=2.0))
    assert out.item() == pytest.approx(math.exp(logit) / (1 + math.exp(logit)))


def test_ragged_sequences_are_alone() -> None:
    spec = AttentionSpec(0, 2, 2, 4, 0.5)
    q, k, v = tensors((6, 2, 4), (6, 2, 4), (6, 2, 4))
    out = ragged_attention(q, k, v, spec, [2, 4])
    torch.testing.assert_close(out[2:], attention(q[2:], k[2:], v[2:], spec))
    assert ragged_attention(q[:0], k[:0], v[:0], spec, []).shape == (0, 2, 4)


@pytest.mark.parametrize("order", ["PSHD", "PHSD"])
def test_paged_equals_whole(order: str) -> None:
    spec = AttentionSpec(1, 2, 1, 4, 0.5, window=4)
    q, k, v = tensors((7, 2, 4), (7, 1, 4), (7, 1, 4))
    layout = KVLayout(2, 2, 1, 4, "float64", order)
    shape = (6, 2, 1, 4) if order == "PSHD" else (6, 1, 2, 4)
    cache = KVCache(layout, *([torch.full(shape, math.nan).double() for _ in range(2)] for _ in "kv"))
    pages = [5, 1, 3, 2]
    for t in range(4):
        token(cache.k[1], layout, pages, t).copy_(k[t])
        token(cache.v[1], layout, pages, t).copy_(v[t])
    out = paged_attention(q[4:], k[4:], v[4:], spec, AttentionInputs([3], [7], [pages]), cache)
    torch.testing.assert_close(out, attention(q, k, v, spec)[4:])


def test_paged_needs_a_block_table() -> None:
    x = torch.zeros(1, 1, 4)
    cache = KVCache(KVLayout(2, 1, 1, 4, "float64"), [], [])
    with pytest.raises(ValueError, match="block table"):
        paged_attention(x, x, x, AttentionSpec(0, 1, 1, 4, 1.0), AttentionInputs([1], [1]), cache)
