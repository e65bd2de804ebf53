"""What every layer has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

import pegboard.nn.grouped
import pegboard.nn.logits  # noqa: F401  so do these
from pegboard.nn.parallel import Region
from pegboard.ops import KernelTable, kernel_table

_REFERENCE = kernel_table()

_Kind = TypeVar("_Kind", bound=nn.Module)


class Layer(nn.Module):
    """A module that computes through a table of kernels, given to it when the model is built.

    region: where a part of the layer is on each rank of a tensor-parallel group; None where all of it is here.
    """

    kernels: KernelTable = _REFERENCE
    region: Region | None = None

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield what torch's own does, in its order, by a loop: generators within generators take several times as long, which every
        walk over the parameters of a mixture of some ten thousand modules would wait for.
        """
        seen = set() if memo is None else memo
        left: list[tuple[str, nn.Module]] = [(prefix, self)]
        while left:
            name, module = left.pop()
            if module in seen:
                continue
            if remove_duplicate:
                seen.add(module)
            yield name, module
            if module._modules:
                start = f"{name}." if name else ""
                left += [
                    (start + leaf, child) for leaf, child in reversed(module._modules.items()) if child is not None
                ]


def alike(module: _Kind) -> Callable[[], _Kind]:
    """Return what makes modules with the settings of `module` and with parameters of their own, without values, in them and all below.

    For layers of which there are thousands alike: making each by its class takes several times as long. The module is new: it has
    neither buffers nor hooks, and stays as it is until the last of them is made.
    """
    kind, settings = type(module), dict(module.__dict__)
    # Torch keeps hooks, parameters and children in dictionaries and sets, of which each module needs its own.
    own = [(name, value) for name, value in settings.items() if isinstance(value, dict | set)]
    parameters = [(name, p) for name, p in module._parameters.items() if p is not None]
    children = [(name, alike(child)) for name, child in module._modules.items() if child is not None]

    def make() -> _Kind:
        made = kind.__new__(kind)
        held = made.__dict__
        held.update(settings)
        for name, value in own:
            held[name] = value.copy()
        for name, parameter in parameters:
            # There is nothing to share in one without storage.
            room = parameter.data if parameter.is_meta else torch.empty_like(parameter.data)
            held["_parameters"][name] = nn.Parameter(room, parameter.requires_grad)
        for name, child in children:
            held["_modules"][name] = child()
        return made

    return make


def bind_kernels(model: nn.Module, table: KernelTable) -> None:
    """Give every layer of `model` the same kernels."""
    for module in model.modules():
        if isinstance(module, Layer):
            # What setting an attribute comes to, without its search for one of that name among parameters and children.
            module.__dict__["kernels"] = table
