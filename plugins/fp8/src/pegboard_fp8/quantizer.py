from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import Experts, Linear
from pegboard.nn.experts import ExpertGroup
from pegboard_fp8 import stored
from pegboard_fp8.layers import Fp8Experts, Fp8Linear, finite
from pegboard_fp8.options import Fp8Options

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor


class Fp8Quantizer(Quantizer):
    """8-bit floats with a scale for each block. Inputs, embedding and head stay as they are.

    only: names of the linear layers that a checkpoint holds quantised; None for all that the options do not skip.
    """

    def __init__(self, options: Fp8Options | None = None, *, only: Sequence[str] | None = None) -> None:
        self.options = options or Fp8Options()
        self._only = None if only is None else frozenset(only)

    @classmethod
    def stored(cls, settings: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Fp8Quantizer:
        """Return the quantizer of a checkpoint that Pegboard, transformers or another of its kind wrote."""
        return cls(Fp8Options(block=stored.read_settings(settings)), only=stored.quantised_names(tensors))

    def swap(self, model: nn.Module) -> list[str]:
        """Replace the chosen linear layers and return their names."""
        chosen = self.chosen(model)
        for name in chosen:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            plain: Any = owner.get_submodule(leaf)
            made = Fp8Linear(name, plain.in_features, plain.out_features, plain.bias, model, block=self.options.block)
            setattr(owner, leaf, made)
        for owner in list(model.modules()):
            for leaf, child in list(owner.named_children()):
                if type(child) is ExpertGroup:
                    setattr(owner, leaf, Fp8Experts(cast(Experts, owner), child.names))
        return chosen

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint, its quantised weights in one piece each."""
        return stored.join(tensors, self.options.block)

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the linear layers that are held in 8 bits."""
        names = [name for name, module in model.named_modules() if type(module) is Linear]
        if self._only is not None:
            return [name for name in names if name in self._only]
        return [name for name in names if not any(name == s or name.endswith(f".{s}") for s in self.options.skip)]

    def store(self, name: str, weight: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Return the tensors for a weight, which is rounded from the precision it comes in; scales are float32."""
        rounded, scales = finite(name, weight, self.options.block)
        if self.options.block is None:
            scales = scales.reshape(())
        return {f"{name}.weight": rounded, f"{name}.{stored.SCALE}": scales}

    def settings(self, kept: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return what transformers calls such weights."""
        return stored.settings_of(self.options.block, kept)

    def restore(self, model: nn.Module) -> None:
        """Put plain linear layers with dequantised weights back, adapted ones beneath their adapters."""
        for owner in list(model.modules()):
            for leaf, child in list(owner.named_children()):
                if isinstance(child, Fp8Linear):
                    setattr(owner, leaf, child.plain())
