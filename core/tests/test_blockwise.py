from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.blockwise import Table, block_count, dynamic_table

TABLES = {
    "signed": dynamic_table(signed=True),
    "unsigned": dynamic_table(signed=False),
    "three": Table([-1.0, 0.25, 1.0]),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(TABLES)),
    count=st.integers(0, 700),
    block=st.sampled_from([1, 16, 64, 256]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_value_goes_to_the_nearest(
    name: str, count: int, block: int, seed: int, scale: float, dtype: torch.dtype
) -> None:
    values = (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    values = values.abs() if name == "unsigned" else values
    table = TABLES[name]
    codes, scales = table.quantise(values, block)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, (count,), (block_count(count, block),))
    of_value = scales.repeat_interleave(block)[:count].double()
    exact = table.values.double()[None, :] * of_value[:, None]
    best = (exact - values.double()[:, None]).abs().amin(1) if count else torch.zeros(0, dtype=torch.float64)
    found = exact.gather(1, codes.long()[:, None])[:, 0]
    assert ((found - values.double()).abs() <= best + 1e-6 * of_value).all()
    torch.testing.assert_close(table.dequantise(codes, scales, block).double(), found, rtol=1e-6, atol=0)


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values, table = torch.randn(37, 50), TABLES["signed"]
    whole = table.quantise(values, 64)
    monkeypatch.setattr("pegboard.blockwise._PIECE", 100)
    pieces = table.quantise(values, 64)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))
    assert torch.equal(table.dequantise(*whole, 64)[:64], table.dequantise(whole[0][:64], whole[1][:1], 64))


def test_zeros_and_what_is_not_finite() -> None:
    codes, scales = TABLES["signed"].quantise(torch.tensor([0.0, 0.0, 1.0, torch.inf, torch.nan, 1.0]), 2)
    assert scales[0] == 0 and not scales[1:].isfinite().any()
    assert TABLES["signed"].dequantise(codes, scales, 2)[:2].tolist() == [0.0, 0.0]


def test_the_dynamic_data_type_by_hand() -> None:
    """Both have 256 values; the largest decade of the signed one has 64 steps of 0.9 / 64, that of the other 128."""
    for signed, steps in ((True, 64), (False, 128)):
        values = TABLES["signed" if signed else "unsigned"].values.tolist()
        assert len(values) == 256 and values == sorted(values) and values[-1] == 1.0 and 0.0 in values
        assert values[-2] == pytest.approx(1 - 0.45 / steps, rel=1e-6)
        assert values[-3] == pytest.approx(1 - 1.35 / steps, rel=1e-6)
        assert values[0] == pytest.approx(-(1 - 0.45 / steps) if signed else 0.0, rel=1e-6)
        assert min(value for value in values if value > 0) == pytest.approx(0.55e-6 if signed else 0.325e-6, rel=1e-5)


def test_values_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="too close"):
        Table([-1.0, 0.5, 0.5001, 0.5002, 1.0])
