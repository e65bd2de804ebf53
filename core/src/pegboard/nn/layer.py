"""What every layer has in common."""

from __future__ import annotations

from torch import nn

import pegboard.nn.grouped
import pegboard.nn.logits  # noqa: F401  so do these
from pegboard.nn.parallel import Region
from pegboard.ops import KernelTable, kernel_table

_REFERENCE = kernel_table()


class Layer(nn.Module):
    """A module that computes through a table of kernels, given to it when the model is built.

    region: where a part of the layer is on each rank of a tensor-parallel group; None where all of it is here.
    """

    kernels: KernelTable = _REFERENCE
    region: Region | None = None


def bind_kernels(model: nn.Module, table: KernelTable) -> None:
    """Give every layer of `model` the same kernels."""
    for module in model.modules():
        if isinstance(module, Layer):
            module.kernels = table
