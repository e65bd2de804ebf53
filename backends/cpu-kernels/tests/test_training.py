"""Forward and backward passes against autograd in float64, for every instruction set."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pegboard.nn  # noqa: F401  registers the ops of losses
from pegboard.ops import registered
from pegboard_cpu_kernels import training

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}

shapes = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def never(*_: Any) -> NoReturn:
    raise AssertionError("the library was to compute this")


def draw(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a function, and its gradients by all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    sums = torch.autograd.grad(out, leaves, [u.to(o.dtype) for u, o in zip(upstream, out, strict=True)])
    return [*(o.detach() for o in out), *sums]


def compare(mine: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> None:
    for one, right in zip(mine, exact, strict=True):
        assert one.dtype == dtype
        scale = right.abs().max().item() if right.numel() else 0.0
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(one.double(), right, rtol=tolerance, atol=tolerance * max(scale, 1e-2))


def norm64(x: Tensor, weight: Tensor, offset: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight + offset)


@shapes
@given(
    rows=st.integers(1, 90), size=st.integers(4, 70), offset=st.sampled_from([0.0, 1.0]), dtype=st.sampled_from(DTYPES)
)
def test_norms(library: ctypes.CDLL, isa: str, rows: int, size: int, offset: float, dtype: torch.dtype) -> None:
    x, weight, upstream = (draw(i, *s, dtype=dtype) for i, s in enumerate([(rows, size), (size,), (rows, size)]))
    norm = training.rms_norm(library, never, offset=offset)
    mine = gradients(lambda x, w: norm(x, w, 1e-5), (x, weight), [upstream])
    exact = gradients(lambda x, w: norm64(x, w, offset), (x.double(), weight.double()), [upstream.double()])
    compare(mine, exact, dtype)


@shapes
@given(rows=st.integers(1, 20), size=st.integers(4, 70), dtype=st.sampled_from(DTYPES))
def test_norm_of_a_sum(library: ctypes.CDLL, isa: str, rows: int, size: int, dtype: torch.dtype) -> None:
    x, residual, one, other = (draw(i, rows, size, dtype=dtype) for i in range(4))
    weight = draw(9, size, dtype=dtype)
    added = training.add_rms_norm(library, never)
    mine = gradients(lambda x, r, w: added(x, r, w, 1e-5), (x, residual, weight), [one, other])

    def wide(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        # What is normed is the rounded sum.
        total = x + r
        total = total + (total.detach().to(dtype).double() - total.detach())
        return norm64(total, w, 0.0), total

    exact = gradients(wide, (x.double(), residual.double(), weight.double()), [one.double(), other.double()])
    compare(mine, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_heads_beside_others(library: ctypes.CDLL, isa: str, dtype: torch.dtype) -> None:
    both, weight, upstream = draw(1, 6, 5, 32, dtype=dtype), draw(2, 32, dtype=dtype), draw(3, 6, 3, 32, dtype=dtype)
    norm = training.rms_norm(library, never)
    mine = gradients(lambda b, w: norm(b[:, :3], w, 1e-5), (both, weight), [upstream])
    exact = gradients(lambda b, w: norm64(b[:, :3], w, 0.0), (both.double(), weight.double()), [upstream.double()])
    compare(mine, exact, dtype)


def test_a_norm_of_which_only_the_sum_is_used(library: ctypes.CDLL) -> None:
    x, residual, weight = (draw(i, *s, dtype=torch.float32) for i, s in enumerate([(4, 8), (4, 8), (8,)]))
    for leaf in (x, residual, weight):
        leaf.requires_grad_()
    _, total = training.add_rms_norm(library, never)(x, residual, weight, 1e-5)
    total.sum().backward()
    assert x.grad is not None and residual.grad is not None
    assert x.grad.eq(1).all() and residual.grad.eq(1).all()
    assert weight.grad is None


@shapes
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 70),
    kind=st.sampled_from(["silu", "gelu"]),
    dtype=st.sampled_from(DTYPES),
)
def test_gates(library: ctypes.CDLL, isa: str, rows: int, width: int, kind: str, dtype: torch.dtype) -> None:
    gate_up, upstream = draw(1, rows, 2 * width, dtype=dtype) * 3, draw(2, rows, width, dtype=dtype)
    make = training.silu_mul if kind == "silu" else training.gelu_tanh_mul

    def wide(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return (F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh")) * up

    mine = gradients(make(library, never), (gate_up,), [upstream])
    compare(mine, gradients(wide, (gate_up.double(),), [upstream.double()]), dtype)


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations(library: ctypes.CDLL, isa: str, dtype: torch.dtype, width: int) -> None:
    angles = torch.arange(7.0)[:, None, None] * torch.linspace(1, 0.1, width // 2)
    cos = torch.cat([angles.cos()] * 2, -1).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
    x, upstream = draw(1, 7, 3, 16, dtype=dtype), draw(2, 7, 3, 16, dtype=dtype)
    rotary = training.rotary(library, never)
    plain = registered()["rotary"].function
    mine = gradients(lambda x: rotary(x, cos, sin), (x,), [upstream])
    exact = gradients(lambda x: plain(x, cos.double(), sin.double()), (x.double(),), [upstream.double()])
    compare(mine, exact, dtype)


@shapes
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 90), dtype=st.sampled_from(DTYPES), scale=st.sampled_from([1, 40])
)
def test_losses(library: ctypes.CDLL, isa: str, rows: int, columns: int, dtype: torch.dtype, scale: int) -> None:
    logits = draw(rows, rows, columns, dtype=dtype) * scale
    targets = torch.randint(columns, (rows,), generator=torch.Generator().manual_seed(columns))
    exact = logits.double().requires_grad_()
    logps = -F.cross_entropy(exact, targets, reduction="none")
    (-logps.sum()).backward()
    found, slope = training.cross_entropy_(library, never)(mine := logits.clone(), targets)
    assert slope is mine
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logps.detach(), rtol=2e-6, atol=2e-5)
    compare([slope], [exact.grad], dtype)  # type: ignore[list-item]
    norm, picked = training.logits_sums(library, never)(logits, targets)
    torch.testing.assert_close(picked - norm, found, rtol=0, atol=0)
    factor = torch.linspace(-2, 2, rows)
    scaled = training.logits_slope_(library, never)(logits.clone(), targets, norm, factor)
    compare([scaled], [exact.grad * factor.double()[:, None]], dtype)  # type: ignore[operator]


def test_targets_elsewhere_and_logits_that_are_not_finite(library: ctypes.CDLL, isa: str) -> None:
    logits = draw(1, 4, 50, dtype=torch.float32)
    logits[1, 7], logits[2, 33], logits[3, 49] = float("-inf"), float("nan"), float("inf")
    norm, picked = training.logits_sums(library, never)(logits, torch.tensor([-1, 50, 0, 0]))
    assert picked.tolist()[:2] == [0.0, 0.0]
    torch.testing.assert_close(norm[:2], logits[:2].logsumexp(-1))
    assert not norm[2:].isfinite().any()
    slope = training.logits_slope_(library, never)(logits.clone(), torch.tensor([-1, 50, 0, 0]), norm)
    torch.testing.assert_close(slope[:2], logits[:2].softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_threads(library: ctypes.CDLL, dtype: torch.dtype, threads: int) -> None:
    x, weight, upstream = (draw(i, *s, dtype=dtype) for i, s in enumerate([(300, 257), (257,), (300, 257)]))
    targets = torch.arange(300) % 257
    norm = training.rms_norm(library, never)

    def all_of_it() -> list[Tensor]:
        found = gradients(lambda x, w: norm(x, w, 1e-6), (x, weight), [upstream])
        return [*found, *training.cross_entropy_(library, never)(x.clone(), targets)]

    many = all_of_it()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = all_of_it()
    torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(many, one, strict=True))


def test_what_the_library_does_not_take_goes_to_the_fallback(library: ctypes.CDLL) -> None:
    asked: list[str] = []

    def fallback(name: str) -> Callable[..., Any]:
        def function(*inputs: Any) -> Any:
            asked.append(name)
            return registered()[name].function(*inputs)

        return function

    made = training.replacements(library, {name: fallback(name) for name in registered()})
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(8, dtype=torch.float64)
    made["rms_norm"](x, weight, 1e-5)
    made["add_rms_norm"](x, x, weight, 1e-5)
    made["silu_mul"](x)
    made["cross_entropy_"](x.detach().clone(), torch.zeros(3, dtype=torch.int64))
    made["logits_sums"](torch.randn(3, 8), torch.zeros(3, dtype=torch.int64), 30.0)
    cos = torch.ones(3, 1, 8, requires_grad=True)
    made["rotary"](torch.randn(3, 2, 8, requires_grad=True), cos, torch.zeros(3, 1, 8))
    assert asked == ["rms_norm", "add_rms_norm", "silu_mul", "cross_entropy_", "logits_sums", "rotary"]
