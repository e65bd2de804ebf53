from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from pegboard.errors import ConfigError
from pegboard.linear_quantizer import LinearQuantizer
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


class Int4Quantizer(LinearQuantizer):
    """4-bit integers in groups of a row, inputs as 8-bit integers by token. Embedding and head stay as they are."""

    layers = (Int4Linear, RoundedLinear)
    options: Int4Options

    def __init__(self, options: Int4Options | None = None, *, only: Sequence[str] | None = None) -> None:
        super().__init__(options or Int4Options(), only=only)

    @classmethod
    def stored(cls, settings: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Int4Quantizer:
        """Return the quantizer of a checkpoint that Pegboard, llm-compressor or another of its kind wrote."""
        group, activations = stored.read_settings(settings)
        return cls(Int4Options(group=group, activations=activations), only=stored.quantised_names(tensors))

    def replacement(self, name: str, linear: Linear, model: nn.Module) -> nn.Module:
        """Return an empty layer of 4-bit integers."""
        return Int4Linear(
            name,
            linear.in_features,
            linear.out_features,
            linear.bias,
            model,
            group=self.options.group,
            activations=self.options.activations,
        )

    def replaced_group(self, owner: nn.Module, group: nn.Module) -> nn.Module | None:
        """Let experts whose layers are all of ours lie together."""
        return Int4Experts(cast(Experts, owner), group.names) if type(group) is ExpertGroup else None

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint, its quantised weights in one piece each."""
        return stored.join(tensors)

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the linear layers that are held in 4 bits. Raises ConfigError naming one whose rows groups do not fill."""
        names = super().chosen(model)
        if self._only is not None:
            return names
        group = self.options.group
        for name in names:
            width = cast(Linear, model.get_submodule(name)).in_features
            if width % group:
                raise ConfigError(
                    f"{name} has {width} inputs, no multiple of quantizer.group={group}",
                    fix=f"choose a smaller group, or quantizer.skip=[{name.rpartition('.')[2]}]",
                )
        return names

    def store(self, name: str, weight: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Return the tensors for a weight, which is rounded from the precision it comes in; scales are float32."""
        return stored.parts_of(name, weight, self.options.group)

    def settings(self, kept: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return what compressed-tensors calls such weights."""
        return stored.settings_of(self.options.group, self.options.activations, kept)


class Int4TrainingQuantizer(Int4Quantizer):
    """Full-precision weights that are rounded as `int4` would in every pass, so that training meets the rounding."""

    trains = True
    options: Int4TrainingOptions

    def __init__(self, options: Int4TrainingOptions | None = None) -> None:
        super().__init__(options or Int4TrainingOptions())
        self._layers: list[RoundedLinear] = []

    def replacement(self, name: str, linear: Linear, model: nn.Module) -> nn.Module:
        """Return a layer that rounds the weights of a plain one."""
        options = self.options
        layer = RoundedLinear(
            linear, group=options.group, activations=options.activations, start_step=options.start_step
        )
        self._layers.append(layer)
        return layer

    def replaced_group(self, owner: nn.Module, group: nn.Module) -> None:
        """Leave all: rounded layers are computed one by one."""

    def begin_step(self, step: int) -> None:
        """Let the layers round, or not yet."""
        for layer in self._layers:
            layer.at_step(step)
