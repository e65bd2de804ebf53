from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from pegboard.errors import ModelError
from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import Experts, Linear, LinearGroup
from pegboard.nn.experts import ExpertGroup
from pegboard_nf4 import stored
from pegboard_nf4.experts import Nf4Experts
from pegboard_nf4.layers import Nf4Group, Nf4Linear, finite_matrix
from pegboard_nf4.options import Nf4Options

if TYPE_CHECKING:
    import torch

    from pegboard.interfaces.format import LazyTensor


class Nf4Quantizer(Quantizer):
    """4-bit NormalFloat with a scale for each 64 weights (QLoRA, arXiv:2305.14314). Embedding and head stay as they are.

    only: names of the linear layers that a checkpoint holds quantised; None for all that the options do not skip.
    """

    def __init__(self, options: Nf4Options | None = None, *, only: Sequence[str] | None = None) -> None:
        self.options = options or Nf4Options()
        self._only = None if only is None else frozenset(only)

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

    def swap(self, model: nn.Module) -> list[str]:
        """Replace the chosen linear layers and return their names."""
        chosen = self.chosen(model)
        for name in chosen:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            old: Any = owner.get_submodule(leaf)
            made = Nf4Linear(name, old.in_features, old.out_features, old.bias, model, double=self.options.double)
            setattr(owner, leaf, made)
        for owner in list(model.modules()):
            for leaf, child in list(owner.named_children()):
                if type(child) is LinearGroup:
                    setattr(owner, leaf, Nf4Group(owner, child.names))
                elif type(child) is ExpertGroup:
                    setattr(owner, leaf, Nf4Experts(cast(Experts, owner), child.names))
        return chosen

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint, its quantised weights in one piece each."""
        return stored.join(tensors)

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the linear layers that are held in 4 bits."""
        names = [name for name, module in model.named_modules() if type(module) is Linear]
        if self._only is not None:
            return [name for name in names if name in self._only]
        return [name for name in names if not any(name == s or name.endswith(f".{s}") for s in self.options.skip)]

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

    def restore(self, model: nn.Module) -> None:
        """Put plain linear layers with dequantised weights back, adapted ones beneath their adapters."""
        for owner, leaf, child in list(_children(model)):
            if type(child) is Nf4Linear:
                setattr(owner, leaf, child.plain())
            elif type(child) is Nf4Group:
                group = LinearGroup(owner, child.names)
                group.kernels = child.kernels
                setattr(owner, leaf, group)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for owner in model.modules():
        for leaf, child in owner.named_children():
            yield owner, leaf, child
