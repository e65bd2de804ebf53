"""The optimizer's update in one pass over each tensor, as a replacement for op `adamw_`, which the trainer registers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pegboard_cpu_kernels.calls import TYPES, check


class _Update(ctypes.Structure):
    """peg_adamw of adamw.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "exp_avg", "exp_avg_sq", "master", "gradient")),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("factor", "decay", "beta1", "beta2", "step_size", "root", "eps")),
        *((name, ctypes.c_uint32) for name in ("key", "second_key")),
        *((name, ctypes.c_int32) for name in ("weight_type", "gradient_type", "moment_type", "at_random")),
    )


def adamw_(library: ctypes.CDLL, fallback: Callable[..., None]) -> Callable[..., None]:
    """Return op `adamw_`."""
    call = library.peg_adamw_step

    def taken(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, master: Tensor | None) -> bool:
        tensors = [weight, gradient, first, second, *([] if master is None else [master])]
        return (
            weight.dtype in TYPES
            and gradient.dtype in TYPES
            and first.dtype is second.dtype
            and first.dtype in (torch.float32, torch.bfloat16)
            and (master is None or master.dtype is torch.float32)
            and all(t.device.type == "cpu" and t.is_contiguous() and t.shape == weight.shape for t in tensors)
        )

    def replaced(
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        masters: Sequence[Tensor | None],
        steps: Sequence[int],
        seeds: Sequence[int],
        how: Any,
        factor: Tensor | None = None,
    ) -> None:
        rows = list(zip(weights, gradients, exp_avgs, exp_avg_sqs, masters, steps, seeds, strict=True))
        ours = [taken(*row[:5]) for row in rows]
        if others := [row for row, mine in zip(rows, ours, strict=True) if not mine]:
            fallback(*map(list, zip(*others, strict=True)), how, factor)
            rows = [row for row, mine in zip(rows, ours, strict=True) if mine]
        scale = 1.0 if factor is None else float(factor)
        for weight, gradient, first, second, master, step, seed in rows:
            update = _Update(
                weight=weight.data_ptr(),
                exp_avg=first.data_ptr(),
                exp_avg_sq=second.data_ptr(),
                master=None if master is None else master.data_ptr(),
                gradient=gradient.data_ptr(),
                count=weight.numel(),
                factor=scale,
                decay=1 - how.lr * how.weight_decay,
                beta1=how.beta1,
                beta2=how.beta2,
                step_size=how.lr / (1 - how.beta1**step),
                root=(1 - how.beta2**step) ** -0.5,
                eps=how.eps,
                key=seed & 0xFFFFFFFF,
                second_key=seed >> 32,
                weight_type=TYPES[weight.dtype],
                gradient_type=TYPES[gradient.dtype],
                moment_type=TYPES[first.dtype],
                at_random=how.at_random,
            )
            if code := call(ctypes.byref(update)):
                check(code, "adamw_")

    return replaced
