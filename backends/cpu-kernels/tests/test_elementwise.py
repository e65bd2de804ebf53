from __future__ import annotations

import ctypes
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard import reference
from pegboard.ops import registered
from pegboard_cpu_kernels import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8 * 1.01, torch.float16: 2.0**-11 * 1.01}
"""One rounding; of float32, a few."""

shapes = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def never(*_: Any) -> NoReturn:
    raise AssertionError("the library was to compute this")


def draw(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(out: Tensor, exact: Tensor) -> None:
    assert out.shape == exact.shape
    tolerance = HALF[out.dtype]
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance * 1e-2 + 1e-7)


@shapes
@given(rows=st.integers(0, 9), size=st.integers(1, 200), dtype=st.sampled_from(DTYPES))
def test_norms(library: ctypes.CDLL, isa: str, rows: int, size: int, dtype: torch.dtype) -> None:
    x, residual, weight = (
        draw(i, *shape, dtype=dtype) for i, shape in enumerate([(rows, size), (rows, size), (size,)])
    )
    wide = x.double()
    exact = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    close(ops.rms_norm(library, never)(x, weight, 1e-5), exact)
    offset = reference.OPS["offset_rms_norm"](x, weight, 1e-5)
    close(ops.rms_norm(library, never, offset=1.0)(x, weight, 1e-5), offset)
    out, total = ops.add_rms_norm(library, never)(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    wide = total.double()
    close(out, wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_many_rows_on_threads(library: ctypes.CDLL, isa: str, threads: int, dtype: torch.dtype) -> None:
    x, weight = draw(1, 300, 257, dtype=dtype), draw(2, 257, dtype=dtype)
    norm = ops.rms_norm(library, never)
    whole = norm(x, weight, 1e-6)
    close(whole, reference.OPS["rms_norm"](x, weight, 1e-6).double())
    assert torch.equal(torch.cat([norm(x[i : i + 1], weight, 1e-6) for i in range(300)]), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_of_heads_that_lie_beside_others(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    heads, weight = draw(1, 7, 5, 24, dtype=dtype), draw(2, 24, dtype=dtype)
    norm = ops.rms_norm(library, never)
    out = norm(heads[:, 1:4], weight, 1e-5)
    assert out.is_contiguous() and torch.equal(out, norm(heads[:, 1:4].contiguous(), weight, 1e-5))


@shapes
@given(rows=st.integers(0, 9), width=st.integers(1, 150), dtype=st.sampled_from(DTYPES))
def test_silu_mul(library: ctypes.CDLL, isa: str, rows: int, width: int, dtype: torch.dtype) -> None:
    both = draw(rows, rows, 2 * width + 3, dtype=dtype)[:, : 2 * width] * 4
    gate, up = both.double().chunk(2, -1)
    close(ops.silu_mul(library, never)(both), gate / (1 + (-gate).exp()) * up)
    close(ops.gelu_tanh_mul(library, never)(both), reference.OPS["gelu_tanh_mul"](both))


def test_silu_at_the_ends(library: ctypes.CDLL, isa: str) -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e30, torch.nan]])
    out = ops.silu_mul(library, never)(torch.cat((gate, torch.ones_like(gate)), -1))
    wide = gate.double()
    exact = wide * torch.sigmoid(wide)
    # What is smaller than float32's normal numbers may be cut there.
    torch.testing.assert_close(out[:, 1:].double(), exact[:, 1:], rtol=1e-5, atol=1e-35, equal_nan=True)


def test_gelu_at_the_ends(library: ctypes.CDLL, isa: str) -> None:
    gate = torch.tensor([[-1e12, -200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e30, torch.nan]])
    both = torch.cat((gate, torch.ones_like(gate)), -1)
    exact = reference.OPS["gelu_tanh_mul"](both)
    torch.testing.assert_close(
        ops.gelu_tanh_mul(library, never)(both).double(), exact, rtol=1e-5, atol=1e-25, equal_nan=True
    )


@shapes
@given(
    tokens=st.integers(0, 5),
    heads=st.integers(1, 4),
    half=st.integers(1, 40),
    kept=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
)
def test_rotary(
    library: ctypes.CDLL, isa: str, tokens: int, heads: int, half: int, kept: int, dtype: torch.dtype
) -> None:
    x = draw(1, tokens, heads + 2, 2 * half + kept, dtype=dtype)[:, :heads]
    cos, sin = draw(2, tokens, 1, 2 * half, dtype=dtype), draw(3, tokens, 1, 2 * half, dtype=dtype)
    out = ops.rotary(library, never)(x, cos, sin)
    turned = x[..., : 2 * half].double()
    exact = turned * cos.double() + turned.roll(half, -1) * sin.double()
    close(out, torch.cat((exact, x[..., 2 * half :].double()), -1))
    assert torch.equal(out[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_on_threads(library: ctypes.CDLL, threads: int, dtype: torch.dtype) -> None:
    x, cos, sin = (draw(i, 200, h, 32, dtype=dtype) for i, h in enumerate((6, 1, 1)))
    rotary = ops.rotary(library, never)
    whole = rotary(x, cos, sin)
    assert torch.equal(torch.cat([rotary(x[i : i + 1], cos[i : i + 1], sin[i : i + 1]) for i in range(200)]), whole)


def test_the_fallbacks_get_what_the_library_does_not_do(library: ctypes.CDLL) -> None:
    """Gradients, float64, mixed types and odd layouts: the torch functions take them."""
    functions = {name: op.function for name, op in registered().items()}
    table = ops.replacements(library, torch.float32, functions)
    x, weight = torch.randn(4, 6), torch.randn(6)
    for args in [(x.double(), weight.double()), (x.t().contiguous().t(), weight), (x.requires_grad_(), weight)]:
        assert torch.equal(table["rms_norm"](*args, 1e-5), functions["rms_norm"](*args, 1e-5))
        ours, theirs = (f["add_rms_norm"](args[0], args[0], args[1], 1e-5) for f in (table, functions))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(table["silu_mul"](args[0]), functions["silu_mul"](args[0])) or args[0].dtype == torch.float32
    assert table["rms_norm"](x, weight, 1e-5).requires_grad
    heads, cos = torch.randn(3, 2, 8).double(), torch.randn(3, 1, 8).double()
    assert torch.equal(table["rotary"](heads, cos, cos), functions["rotary"](heads, cos, cos))
    assert ops.replacements(library, torch.float64, functions) == {}
