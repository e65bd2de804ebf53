"""What a platform offers of these kernels in place of `pegboard.ops`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pegboard_triton.catalogue import MODULES
from pegboard_triton.compiler import lacking

if TYPE_CHECKING:
    import torch

    from pegboard.interfaces.platform import Phase


log = logging.getLogger("pegboard.triton")


def replacements(phase: Phase, dtype: torch.dtype, kind: str = "cuda") -> dict[str, Callable[..., Any]]:
    """Return op name -> function for models of `dtype` in this phase; differentiable ones for "train".

    kind: of the targets, "cuda", "hip" or "xpu". Where no Triton compiles for such, nothing is offered, and one line says so.
    """
    if reason := lacking(kind):
        _warn(reason)
        return {}
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        offered = getattr(import_module(module), "replacements", None)
        if offered is not None:
            found.update(offered(phase, dtype))
    return found


@cache
def _warn(reason: str) -> None:
    log.warning("ops are computed by torch's own functions: %s", reason)
