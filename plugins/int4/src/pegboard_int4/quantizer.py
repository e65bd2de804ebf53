from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from pegboard.errors import ConfigError
from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import Experts, Linear
from pegboard.nn.experts import ExpertGroup
from pegboard_int4 import stored
from pegboard_int4.experts import Int4Experts
from pegboard_int4.layers import Int4Linear
from pegboard_int4.options import Int4Options, Int4TrainingOptions
from pegboard_int4.training import RoundedLinear

if TYPE_CHECKING:
    import torch

    from pegboard.interfaces.format import LazyTensor


class Int4Quantizer(Quantizer):
    """4-bit integers in groups of a row, inputs as 8-bit integers by token. Embedding and head stay as they are.

    only: names of the linear layers that a checkpoint holds quantised; None for all that the options do not skip.
    """

    def __init__(self, options: Int4Options | None = None, *, only: Sequence[str] | None = None) -> None:
        self.options = options or Int4Options()
        self._only = None if only is None else frozenset(only)

    @classmethod
    def stored(cls, settings: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Int4Quantizer:
        """Return the quantizer of a checkpoint that Pegboard, llm-compressor or another of its kind wrote."""
        group, activations = stored.read_settings(settings)
        return cls(Int4Options(group=group, activations=activations), only=stored.quantised_names(tensors))

    def swap(self, model: nn.Module) -> list[str]:
        """Replace the chosen linear layers and return their names. Raises ConfigError naming one whose rows groups do not fill."""
        chosen = self.chosen(model)
        for name in chosen:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, leaf, self._made(name, owner.get_submodule(leaf), model))
        self._swap_groups(model)
        return chosen

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint, its quantised weights in one piece each."""
        return stored.join(tensors)

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the linear layers that are held in 4 bits."""
        linear = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
        if self._only is not None:
            return [name for name in linear if name in self._only]
        group, skip = self.options.group, self.options.skip
        names = [name for name in linear if not any(name == s or name.endswith(f".{s}") for s in skip)]
        for name in names:
            if linear[name].in_features % group:
                raise ConfigError(
                    f"{name} has {linear[name].in_features} inputs, no multiple of quantizer.group={group}",
                    fix=f"choose a smaller group, or quantizer.skip=[{name.rpartition('.')[2]}]",
                )
        return names

    def store(self, name: str, weight: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Return the tensors for a weight, which is rounded from the precision it comes in; scales are float32."""
        return stored.parts_of(name, weight, self.options.group)

    def settings(self, kept: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return what compressed-tensors calls such weights."""
        return stored.settings_of(self.options.group, self.options.activations, kept)

    def restore(self, model: nn.Module) -> None:
        """Put plain linear layers with dequantised weights back, adapted ones beneath their adapters."""
        for owner in list(model.modules()):
            for leaf, child in list(owner.named_children()):
                if isinstance(child, Int4Linear | RoundedLinear):
                    setattr(owner, leaf, child.plain())

    def _swap_groups(self, model: nn.Module) -> None:
        """Let experts whose layers are all of ours lie together."""
        for owner in list(model.modules()):
            for leaf, child in list(owner.named_children()):
                if type(child) is ExpertGroup:
                    setattr(owner, leaf, Int4Experts(cast(Experts, owner), child.names))

    def _made(self, name: str, plain: Any, model: nn.Module) -> nn.Module:
        options = self.options
        return Int4Linear(
            name,
            plain.in_features,
            plain.out_features,
            plain.bias,
            model,
            group=options.group,
            activations=options.activations,
        )


class Int4TrainingQuantizer(Int4Quantizer):
    """Full-precision weights that are rounded as `int4` would in every pass, so that training meets the rounding."""

    trains = True
    options: Int4TrainingOptions

    def __init__(self, options: Int4TrainingOptions | None = None) -> None:
        super().__init__(options or Int4TrainingOptions())
        self._layers: list[RoundedLinear] = []

    def _swap_groups(self, model: nn.Module) -> None:
        """Nothing to do: rounded layers are computed one by one."""

    def begin_step(self, step: int) -> None:
        """Let the layers round, or not yet."""
        for layer in self._layers:
            layer.at_step(step)

    def _made(self, name: str, plain: Any, model: nn.Module) -> nn.Module:
        options = self.options
        layer = RoundedLinear(
            plain, group=options.group, activations=options.activations, start_step=options.start_step
        )
        self._layers.append(layer)
        return layer
