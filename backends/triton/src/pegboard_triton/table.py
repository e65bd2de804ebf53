"""What a platform offers of these kernels in place of `pegboard.ops`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pegboard_triton.catalogue import MODULES

if TYPE_CHECKING:
    import torch

    from pegboard.interfaces.platform import Phase


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return op name -> function for models of `dtype` in this phase; differentiable ones for "train"."""
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        offered = getattr(import_module(module), "replacements", None)
        if offered is not None:
            found.update(offered(phase, dtype))
    return found
