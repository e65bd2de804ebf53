"""Results of cheap operations that a layer computes again in its backward pass, from what is kept anyway."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from pegboard.nn.layer import Layer
from pegboard.ops import KernelTable

CHEAP = ("rms_norm", "offset_rms_norm", "rotary", "silu_mul", "gelu_tanh_mul")
"""Ops that read little more than they write, and whose own backward passes keep their inputs; `add_rms_norm` is handled as a norm."""


class _Result:
    """What one operation gave, as the way to compute it again. uses: how many saved tensors stand for a part of it."""

    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Any, ...], out: Tensor) -> None:
        self._function, self._arguments = function, arguments
        self._out, self._version = weakref.ref(out), out._version
        self._inputs = [a._version for a in arguments if isinstance(a, Tensor)]
        self.uses = 0
        self._again: Tensor | None = None

    def unchanged(self) -> bool:
        """Whether nobody wrote into it, as far as it still stands somewhere."""
        out = self._out()
        return out is None or out._version == self._version

    def compute(self) -> Tensor:
        """Return it; computed once for all uses."""
        self.uses -= 1
        again = self._again
        if again is None:
            # What writes over an input in its backward pass must come after whoever needs this.
            if [a._version for a in self._arguments if isinstance(a, Tensor)] != self._inputs:
                raise RuntimeError(f"{self._function} cannot be computed again: an input of it was written over")
            with torch.no_grad():
                again = self._function(*(_unpack(argument) for argument in self._arguments))
        self._again = again if self.uses > 0 else None
        return again


@dataclass(frozen=True, slots=True)
class _Part:
    """A saved tensor: which elements of a result it is."""

    result: _Result
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Recomputed:
    """A layer after whose forward passes results of `CHEAP` operations are not kept: their inputs are, by whoever made them.

    Values and gradients stay the same: the same functions compute them. Of a dense layer about a third less is kept, at the price of
    reading and writing that third once more.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._running = False
        self._results: dict[int, tuple[StorageWeakRef, _Result]] = {}
        tables: dict[int, KernelTable] = {}
        for module in layer.modules():
            if isinstance(module, Layer):
                if id(module.kernels) not in tables:
                    tables[id(module.kernels)] = self._noting(module.kernels)
                module.kernels = tables[id(module.kernels)]

    def wrap(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward pass of the layer that keeps so little."""

        def run(*arguments: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*arguments)
            self._running = True
            try:
                with saved_tensors_hooks(self._pack, _unpack):
                    return forward(*arguments)
            finally:
                self._running = False
                self._results.clear()

        return run

    def _noting(self, table: KernelTable) -> KernelTable:
        """Return the table with functions that note what they give."""
        own: Mapping[str, Callable[..., Any]] = vars(table)
        made = dict(own)
        for name in CHEAP:
            made[name] = self._noted(own[name])

        def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
            out, total = own["add_rms_norm"](x, residual, weight, eps)
            self._note(out, own["rms_norm"], (total, weight, eps))
            return out, total

        return KernelTable(**{**made, "add_rms_norm": add_rms_norm})

    def _noted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            out = function(*arguments)
            self._note(out, function, arguments)
            return out

        return run

    def _note(self, out: Tensor, function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        if self._running:
            kept = tuple(self._pack(a.detach()) if isinstance(a, Tensor) else a for a in arguments)
            # A weak reference keeps another storage from getting the same number, and the storage itself from nothing.
            reference = StorageWeakRef(out.untyped_storage())
            self._results[reference.cdata] = reference, _Result(function, kept, out)

    def _pack(self, tensor: Tensor) -> Tensor | _Part:
        found = self._results.get(tensor.untyped_storage()._cdata)
        if found is None or not found[1].unchanged():
            return tensor
        found[1].uses += 1
        return _Part(found[1], tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _unpack(kept: Any) -> Any:
    return kept.result.compute().as_strided(kept.size, kept.stride, kept.offset) if isinstance(kept, _Part) else kept
