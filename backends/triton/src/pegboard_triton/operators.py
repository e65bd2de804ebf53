"""Functions that launch kernels, as operators of torch: a compiler takes a call as it is, and knows what it returns and writes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pegboard_triton.kernel import INTERPRETED, on

__all__ = ["INTERPRETED", "TYPES", "differentiates", "on", "operator", "takes"]

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The dtypes that element-wise kernels take, and what Triton calls them."""

_LIBRARY = torch.library.Library("pegboard_triton", "FRAGMENT")


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function an operator, called with positional arguments, the first of which is a tensor on its device.

    schema: in torch's notation, such as "rms(Tensor x, float eps) -> Tensor"; `Tensor(a!)` is written to.
    fake: the same arguments without content -> results of the right shapes, dtypes and strides.
    """
    name = schema.partition("(")[0]

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def here(x: Tensor, *arguments: Any) -> Any:
            with on(x.device):
                return function(x, *arguments)

        _LIBRARY.define(schema)
        _LIBRARY.impl(name, here, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pegboard_triton::{name}", fake, lib=_LIBRARY)
        made: Callable[..., Any] = getattr(torch.ops.pegboard_triton, name).default
        return made

    return make


def takes(*tensors: Tensor) -> bool:
    """Return whether kernels can compute with these: one dtype of `TYPES`, on a GPU or where kernels are interpreted."""
    first = tensors[0]
    if first.dtype not in TYPES or any(tensor.dtype != first.dtype for tensor in tensors[1:]):
        return False
    return first.device.type not in ("cpu", "meta") or (first.device.type == "cpu" and INTERPRETED)


def differentiates(*tensors: Tensor) -> bool:
    """Return whether a gradient may be asked of what is computed from these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
