from __future__ import annotations

import ctypes
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard_cpu_kernels import ops
from pegboard_cpu_kernels.calls import check

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half the distance between 1 and the next number."""


def never(*_: Any) -> NoReturn:
    raise AssertionError("the library was to compute this")


def draw(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Sums in float32 with one rounding: within the bounds of both."""
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    # Rounding errors of a sum in lanes grow with the sum of magnitudes, times about the additions of one lane.
    size = x.double().abs() @ weight.double().abs().t() + (0 if bias is None else bias.double().abs())
    bound = 1.01 * EPSILON[x.dtype] * exact.abs() + size * 2.0**-24 * (x.shape[1] / 4 + 8) + 1e-7
    wrong = (out.double() - exact).abs() > bound
    assert not wrong.any(), (x.shape, weight.shape, (out.double() - exact).abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_every_number_of_rows(library: ctypes.CDLL, isa: str, threads: int, dtype: torch.dtype, bias: bool) -> None:
    linear = ops.linear(library, never, most=1000)
    weight = draw(1, 53, 71, dtype=dtype)
    added = draw(2, 53, dtype=dtype) if bias else None
    x = draw(3, 70, 71, dtype=dtype)
    whole = linear(x, weight, added)
    for m in [*range(1, 20), 31, 64, 65, 70]:
        out = linear(x[:m], weight, added)
        close(out, x[:m], weight, added)
        assert torch.equal(out, whole[:m]), "a row's bits depend on how many there are"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(m=st.integers(1, 140), n=st.integers(1, 130), k=st.integers(1, 300), seed=st.integers(0, 9), data=st.data())
def test_any_shape(library: ctypes.CDLL, isa: str, m: int, n: int, k: int, seed: int, data: st.DataObject) -> None:
    linear = ops.linear(library, never, most=1000)
    dtype = data.draw(st.sampled_from(DTYPES))
    weight, x = draw(seed, n, k, dtype=dtype), draw(seed + 1, m, k, dtype=dtype)
    close(linear(x, weight), x, weight, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1023, 1024, 1025, 1536, 2050])
def test_long_sums(library: ctypes.CDLL, isa: str, threads: int, dtype: torch.dtype, k: int) -> None:
    linear = ops.linear(library, never, most=1000)
    weight, x = draw(k, 29, k, dtype=dtype), draw(k + 1, 13, k, dtype=dtype)
    whole = linear(x, weight)
    close(whole, x, weight, None)
    for m in (1, 2, 5):
        assert torch.equal(linear(x[:m], weight), whole[:m])


def test_one_rounding_beats_many(library: ctypes.CDLL, isa: str) -> None:
    """Ones times 2^-9 in 4,096 terms: sums in bfloat16 would stall, float32 gives 8 exactly."""
    linear = ops.linear(library, never, most=1000)
    for rows in (1, 9):
        x, weight = torch.ones(rows, 4096).bfloat16(), torch.full((5, 4096), 2.0**-9).bfloat16()
        assert (linear(x, weight) == 8).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_and_weights(library: ctypes.CDLL, isa: str, dtype: torch.dtype) -> None:
    linear = ops.linear(library, never, most=1000)
    wide, tall = draw(1, 9, 100, dtype=dtype), draw(2, 40, 90, dtype=dtype)
    for rows in (1, 3, 9):
        x, weight = wide[:rows, 7:71], tall[3:30, 5:69]
        assert torch.equal(linear(x, weight), linear(x.contiguous(), weight.contiguous()))
        # A transposed view is laid out first.
        assert torch.equal(linear(x.t().contiguous().t(), weight), linear(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_spreads_in_its_row_and_column_alone(
    library: ctypes.CDLL, isa: str, dtype: torch.dtype
) -> None:
    linear = ops.linear(library, never, most=1000)
    for rows in (2, 9):
        x, weight = draw(1, rows, 33, dtype=dtype), draw(2, 11, 33, dtype=dtype)
        clean = linear(x, weight)
        x[1, 32] = torch.inf
        weight[4, 32] = torch.nan
        out = linear(x, weight)
        bad = torch.zeros(rows, 11, dtype=torch.bool)
        bad[1], bad[:, 4] = True, True
        assert torch.equal(~out.isfinite(), bad)
        assert torch.equal(out[~bad], clean[~bad])


def test_large_values_round_to_infinity(library: ctypes.CDLL, isa: str) -> None:
    linear = ops.linear(library, never, most=1000)
    x = torch.full((1, 4), 60000.0).half()
    assert linear(x, torch.ones(3, 4).half()).isinf().all()
    tiny = torch.tensor([[2.0**-24, 0.0]]).half()
    assert torch.equal(linear(tiny, torch.tensor([[1.0, 0.0]]).half()), tiny[:, :1])


def test_no_rows_and_no_product(library: ctypes.CDLL) -> None:
    linear = ops.linear(library, lambda *a: torch.nn.functional.linear(*a), most=1000)
    assert linear(torch.empty(0, 8), torch.ones(3, 8)).shape == (0, 3)
    assert torch.equal(linear(torch.empty(2, 0), torch.ones(3, 0)), torch.zeros(2, 3))


def asked(library: ctypes.CDLL) -> tuple[Any, list[tuple[Any, ...]]]:
    calls: list[tuple[Any, ...]] = []

    def fallback(*a: Any) -> str:
        calls.append(a)
        return "fallback"

    return ops.linear(library, fallback, most=4), calls


def test_the_fallback_gets_what_the_library_does_not_do(library: ctypes.CDLL) -> None:
    linear, calls = asked(library)
    x, weight = torch.ones(2, 8), torch.ones(3, 8)
    for args in [
        (torch.ones(5, 8), weight),
        (x.double(), weight.double()),
        (x.bfloat16(), weight),
        (torch.ones(2, 2, 8), weight),
        (torch.ones(2, 7), weight),
        (x, torch.ones(8, 3).t()),
        (x, weight, torch.ones(3).double()),
        (x.clone().requires_grad_(), weight),
        (x, weight.clone().requires_grad_()),
    ]:
        calls.clear()
        assert linear(*args) == "fallback" and len(calls) == 1, args
    with torch.no_grad():
        assert linear(x.clone().requires_grad_(), weight).tolist() == [[8.0] * 3] * 2


def test_weights_are_read_where_they_are(library: ctypes.CDLL) -> None:
    linear = ops.linear(library, never, most=1000)
    x, weight = torch.ones(1, 8), torch.nn.Parameter(torch.ones(3, 8), requires_grad=False)
    assert linear(x, weight).tolist() == [[8.0] * 3]
    weight.mul_(2)
    assert linear(x, weight).tolist() == [[16.0] * 3], "a change in place is seen"
    weight.data = torch.full((2, 8), 3.0)
    assert linear(x, weight).tolist() == [[24.0] * 2], "a change of storage is seen"


def test_nothing_is_kept_of_a_weight_that_is_gone(library: ctypes.CDLL) -> None:
    linear = ops.linear(library, never, most=1000)
    known = dict(zip(linear.__code__.co_freevars, (cell.cell_contents for cell in linear.__closure__), strict=True))[
        "known"
    ]
    x = torch.ones(1, 8)
    for size in (3, 5):
        weight = torch.ones(size, 8)
        assert linear(x, weight).shape == (1, size)
        assert len(known) == 1
        del weight
        assert known == {}


def test_a_lack_of_memory_and_nonsense_are_told() -> None:
    with pytest.raises(MemoryError, match="linear"):
        check(-2, "linear")
    with pytest.raises(RuntimeError, match="linear"):
        check(-1, "linear")
