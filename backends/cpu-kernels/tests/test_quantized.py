from __future__ import annotations

import ctypes
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard_cpu_kernels.quantized import int8_linear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def never(*_: Any) -> NoReturn:
    raise AssertionError("the library was to compute this")


def draw(seed: int, m: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
    scales = torch.rand(n, generator=g) / 100
    return torch.randn(m, k, generator=g).to(dtype), weight, scales, torch.randn(n, generator=g).to(dtype)


def close(out: Tensor, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
    wide = weight.double() * scales.double()[:, None]
    added = 0 if bias is None else bias.double()
    exact, size = x.double() @ wide.t() + added, x.double().abs() @ wide.abs().t() + abs(added)
    bound = 1.01 * EPSILON[x.dtype] * exact.abs() + size * 2.0**-24 * (x.shape[1] / 4 + 8) + 1e-7
    assert ((out.double() - exact).abs() <= bound).all()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    m=st.integers(1, 90),
    n=st.integers(1, 90),
    k=st.integers(1, 200),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(library: ctypes.CDLL, isa: str, m: int, n: int, k: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight, scales, bias = draw(m, m, n, k, dtype)
    added = bias if biased else None
    close(int8_linear(library, never, most=1000)(x, weight, scales, added), x, weight, scales, added)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone(library: ctypes.CDLL, isa: str, threads: int, dtype: torch.dtype) -> None:
    product = int8_linear(library, never, most=1000)
    x, weight, scales, bias = draw(1, 40, 61, 1100, dtype)
    whole = product(x, weight, scales, bias)
    for m in (1, 2, 3, 5, 9, 33):
        assert torch.equal(product(x[:m], weight, scales, bias), whole[:m])


def test_changes_in_place_and_new_scales_are_seen(library: ctypes.CDLL) -> None:
    product = int8_linear(library, never, most=1000)
    x, weight, scales = torch.ones(1, 4), torch.ones(2, 4, dtype=torch.int8), torch.ones(2)
    assert product(x, weight, scales, None).tolist() == [[4.0, 4.0]]
    weight[0] = 3
    assert product(x, weight, scales, None).tolist() == [[12.0, 4.0]]
    assert product(x, weight, torch.tensor([2.0, 1.0]), None).tolist() == [[24.0, 4.0]]


def test_the_fallback_gets_what_the_library_does_not_do(library: ctypes.CDLL) -> None:
    product = int8_linear(library, lambda *a: "fallback", most=4)  # type: ignore[arg-type, return-value]
    x, weight, scales, bias = draw(1, 2, 3, 8, torch.float32)
    for args in [
        (torch.ones(5, 8), weight, scales, None),
        (x.double(), weight, scales, None),
        (x, weight.int(), scales, None),
        (x, weight, scales.double(), None),
        (x, weight, scales[:2], None),
        (x, weight, scales, bias.double()),
        (x.requires_grad_(), weight, scales, None),
    ]:
        assert product(*args) == "fallback"
