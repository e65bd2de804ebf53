"""Where there is no GPU, kernels run in Triton's interpreter: it has to be chosen before any kernel is made."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

    from triton import language
    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        """Let a scalar of a kernel be the bound of a loop: the interpreter's are arrays of one item, no integers to numpy 2.4."""
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_lang_tensor

    _dot = interpreter.InterpreterBuilder.create_dot

    def _create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        """Multiply bfloat16 as the numbers they are: the interpreter keeps their bits and would multiply those."""
        a, b = (self.cast_impl(x, language.float32) if x.dtype.scalar == language.bfloat16 else x for x in (a, b))
        return _dot(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = _create_dot

    # The same holds for sums and the like of bfloat16, for its constants, and for integers that become bfloat16.
    _binary, _cast = interpreter.InterpreterBuilder.binary_op, interpreter.InterpreterBuilder.cast_impl

    def _binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar != language.bfloat16:
            return _binary(self, left, right, op)
        left, right = (_cast(self, x, language.float32) for x in (left, right))
        return _cast(self, _binary(self, left, right, op), language.bfloat16)

    def _cast_impl(self: Any, x: Any, to: Any) -> Any:
        if to.scalar == language.bfloat16 and not x.dtype.scalar.is_floating():
            x = _cast(self, x, language.float32)
        return _cast(self, x, to)

    def _get_bf16(self: Any, value: float) -> Any:
        return _cast(self, self.get_fp32(value), language.bfloat16)

    interpreter.InterpreterBuilder.binary_op = _binary_op
    interpreter.InterpreterBuilder.cast_impl = _cast_impl
    interpreter.InterpreterBuilder.get_bf16 = _get_bf16


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that kernels run on: the first GPU, or the host with the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Of the norm of a difference, relative to the exact result's: that of one rounding at the end, mostly (the interpreter cuts)."""


def relative(out: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference relative to the exact result's; infinite where shapes differ or anything is not finite."""
    if out.shape != exact.shape or not out.isfinite().all():
        return float("inf")
    return float((out.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp(min=1e-12))


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Return normal values, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every tensor that is made without values begins as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compare(poisoned: None) -> Callable[..., None]:
    """Return (kernel, oracle, inputs) -> None: the kernel's results, and its gradients by the floating-point tensors among the
    inputs, are the oracle's in float64. Inputs that are views stay so. gradients: by which of those tensors; all without.
    """

    def check(
        kernel: Callable[..., Any],
        oracle: Callable[..., Any],
        inputs: Sequence[Any],
        *,
        gradients: Sequence[int] | None = None,
        scale: float = 1.0,
    ) -> None:
        numbers = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
        chosen = numbers if gradients is None else gradients
        mine = [x.detach().requires_grad_(i in chosen) if i in numbers else x for i, x in enumerate(inputs)]
        exact = [x.detach().double().requires_grad_(i in chosen) if i in numbers else x for i, x in enumerate(inputs)]
        outs, wanted = _tuple(kernel(*mine)), _tuple(oracle(*exact))
        tolerance = TOLERANCES[inputs[numbers[0]].dtype] * scale
        for out, right in zip(outs, wanted, strict=True):
            assert relative(out, right) < tolerance
        if not chosen:
            return
        upstream = [draw(*x.shape, dtype=x.dtype, device=x.device, seed=99 + i) for i, x in enumerate(outs)]
        got = torch.autograd.grad(outs, [mine[i] for i in chosen], upstream)
        right_ones = torch.autograd.grad(wanted, [exact[i] for i in chosen], [x.double() for x in upstream])
        for found, right in zip(got, right_ones, strict=True):
            assert relative(found, right) < 2 * tolerance

    return check


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
