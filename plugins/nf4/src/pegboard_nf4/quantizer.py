from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from pegboard.errors import ModelError
from pegboard.linear_quantizer import LinearQuantizer
from pegboard.nn import Experts, Linear, LinearGroup
from pegboard.nn.experts import ExpertGroup
from pegboard_nf4 import stored
from pegboard_nf4.experts import Nf4Experts
from pegboard_nf4.layers import Nf4Group, Nf4Linear, finite_matrix
from pegboard_nf4.options import Nf4Options

if TYPE_CHECKING:
    import torch

    from pegboard.interfaces.format import LazyTensor


class Nf4Quantizer(LinearQuantizer):
    """4-bit NormalFloat with a scale for each 64 weights (QLoRA, arXiv:2305.14314). Embedding and head stay as they are."""

    layers = (Nf4Linear,)
    options: Nf4Options

    def __init__(self, options: Nf4Options | None = None, *, only: Sequence[str] | None = None) -> None:
        super().__init__(options or Nf4Options(), only=only)

    @classmethod
    def stored(cls, settings: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Nf4Quantizer:
        """Return the quantizer of a checkpoint that bitsandbytes or Pegboard wrote."""
        kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else "no 4-bit form"
        if kind != "nf4":
            raise ModelError(
                f"bitsandbytes' weights are read as nf4, and this checkpoint's are {kind}",
                fix="name the model in full precision, with quantizer=nf4 to hold it in 4 bits",
            )
        double = any(name.endswith(".nested_absmax") for name in tensors)
        return cls(
            Nf4Options(double=double), only=[name.removesuffix(".weight") for name in stored.quantised_names(tensors)]
        )

    def replacement(self, name: str, linear: Linear, model: nn.Module) -> Nf4Linear:
        """Return an empty layer of 4-bit floats."""
        return Nf4Linear(name, linear.in_features, linear.out_features, linear.bias, model, double=self.options.double)

    def replaced_group(self, owner: nn.Module, group: nn.Module) -> nn.Module | None:
        """Let layers of one input, and experts, whose layers are all of ours lie together."""
        if type(group) is LinearGroup:
            return Nf4Group(owner, group.names)
        return Nf4Experts(cast(Experts, owner), group.names) if type(group) is ExpertGroup else None

    def plain_group(self, owner: nn.Module, group: nn.Module) -> LinearGroup | None:
        """Return the group of plain layers that one of ours was made of."""
        if type(group) is not Nf4Group:
            return None
        plain = LinearGroup(owner, group.names)
        plain.kernels = group.kernels
        return plain

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint, its quantised weights in one piece each."""
        return stored.join(tensors)

    def store(self, name: str, weight: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Return bitsandbytes' tensors for a weight, which is rounded to `dtype` first, as it is there."""
        matrix = finite_matrix(name, weight.to(dtype), double=self.options.double)
        return stored.parts_of(f"{name}.weight", matrix, dtype)

    def settings(self, kept: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return what transformers writes for such weights."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.options.double,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "llm_int8_skip_modules": list(kept),
        }
