from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.types import AttentionInputs, AttentionSpec, KVCache
from pegboard_sdpa.backend import SdpaAttention
from pegboard_sdpa.rows import Rows, quantize

BACKEND = SdpaAttention()
CPU = torch.device("cpu")


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_row_is_off_by_half_a_step_at_most(rows: list[list[float]]) -> None:
    exact = torch.tensor(rows)
    values, scales = quantize(exact)
    assert values.dtype == torch.int8 and scales.dtype == torch.float32
    error = (values.double() * scales.double()[:, None] - exact.double()).abs()
    step = exact.double().abs().amax(-1, keepdim=True) / 127
    assert (error <= 0.5 * step * (1 + 1e-5) + 1e-40).all()


def test_a_row_of_zeros() -> None:
    values, scales = quantize(torch.zeros(2, 4))
    assert not values.any() and not scales.any()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(wrong: float) -> None:
    values, scales = quantize(torch.tensor([[1.0, wrong], [1.0, -3.0]]))
    assert scales[0].isnan() and scales[1] == torch.tensor(3.0) / 127
    assert values.tolist() == [[0, 0], [42, -127]]


def test_rows_of_float8() -> None:
    """Each value is within a sixteenth of itself, or half a step of the smallest codes; the largest is exact."""
    exact = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)) ** 3
    values, scales = quantize(exact, torch.float8_e4m3fn)
    found = values.double() * scales.double()[:, None]
    error = (found - exact.double()).abs()
    assert (error <= exact.double().abs() / 16 + scales.double()[:, None] * 2**-10 + 1e-12).all()
    torch.testing.assert_close(found.abs().amax(-1), exact.double().abs().amax(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("cells", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("pages", [[[3, 1], [2]], [[1, 2], [3]]])
def test_attention_over_a_cache_of_codes(cells: torch.dtype, static: bool, pages: list[list[int]]) -> None:
    """A step over codes is one over a float32 cache that holds the same values."""
    spec = AttentionSpec(1, 4, 2, 8, 0.3)
    scaled, plain = (BACKEND.layout(spec, 2, 4, dtype) for dtype in (cells, torch.float32))
    caches = [KVCache.allocate(layout, 5, CPU) for layout in (scaled, plain)]
    generator = torch.Generator().manual_seed(1)
    past = torch.tensor([slot for row in pages for slot in range(row[0] * 4, row[0] * 4 + 3)])
    q, k, v = (torch.randn(2, heads, 8, generator=generator) for heads in (4, 2, 2))
    old = torch.randn(2, 6, 2, 8, generator=generator)
    pair = Rows.of(caches[0], 1)
    for rows, other, before, new in zip(pair, Rows.of(caches[1], 1), old, (k, v), strict=True):
        rows.write(past, before)
        other.write(past, rows.at(past, torch.float32))
        values, scales = quantize(new, cells)
        new.copy_(values.float() * scales[..., None])  # what a float32 cache gets is what the codes hold
    slots = torch.tensor([row[0] * 4 + 3 for row in pages])
    padding = {"pad_to": 2, "pad_pages": 2} if static else {}
    inputs = AttentionInputs([1, 1], [4, 4], pages, slots, **padding)
    outs = [BACKEND.attend(q, k, v, spec, BACKEND.plan(inputs, CPU, cache.layout), cache) for cache in caches]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-6, atol=1e-6)
