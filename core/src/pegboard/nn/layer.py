"""What every layer has in common."""

from __future__ import annotations

from torch import nn

from pegboard.ops import KernelTable, kernel_table

_REFERENCE = kernel_table()


class Layer(nn.Module):
    """A module that computes through a table of kernels, given to it when the model is built."""

    kernels: KernelTable = _REFERENCE


def bind_kernels(model: nn.Module, table: KernelTable) -> None:
    """Give every layer of `model` the same kernels."""
    for module in model.modules():
        if isinstance(module, Layer):
            module.kernels = table
