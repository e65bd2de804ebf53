from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pegboard.linear_quantizer import LinearQuantizer
from pegboard.nn import Experts, Linear
from pegboard.nn.experts import ExpertGroup
from pegboard_fp8 import stored
from pegboard_fp8.layers import Fp8Experts, Fp8Linear, finite
from pegboard_fp8.options import Fp8Options

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor


class Fp8Quantizer(LinearQuantizer):
    """8-bit floats with a scale for each block. Inputs, embedding and head stay as they are."""

    layers = (Fp8Linear,)
    options: Fp8Options

    def __init__(self, options: Fp8Options | None = None, *, only: Sequence[str] | None = None) -> None:
        super().__init__(options or Fp8Options(), only=only)

    @classmethod
    def stored(cls, settings: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Fp8Quantizer:
        """Return the quantizer of a checkpoint that Pegboard, transformers or another of its kind wrote."""
        return cls(Fp8Options(block=stored.read_settings(settings)), only=stored.quantised_names(tensors))

    def replacement(self, name: str, linear: Linear, model: nn.Module) -> Fp8Linear:
        """Return an empty layer of 8-bit floats."""
        return Fp8Linear(name, linear.in_features, linear.out_features, linear.bias, model, block=self.options.block)

    def replaced_group(self, owner: nn.Module, group: nn.Module) -> Fp8Experts | None:
        """Let experts whose layers are all of ours lie together."""
        return Fp8Experts(cast(Experts, owner), group.names) if type(group) is ExpertGroup else None

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint, its quantised weights in one piece each."""
        return stored.join(tensors, self.options.block)

    def store(self, name: str, weight: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Return the tensors for a weight, which is rounded from the precision it comes in; scales are float32."""
        rounded, scales = finite(name, weight, self.options.block)
        if self.options.block is None:
            scales = scales.reshape(())
        return {f"{name}.weight": rounded, f"{name}.{stored.SCALE}": scales}

    def settings(self, kept: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return what transformers calls such weights."""
        return stored.settings_of(self.options.block, kept)
