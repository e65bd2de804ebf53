"""Kind `quantizer`: weights in fewer bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pegboard.interfaces.format import LazyTensor


class StoredTensor(Protocol):
    """A weight that a checkpoint holds quantised, in several tensors. As a LazyTensor it is the weight that they stand for.

    parts: the tensors as they are stored, by the names that follow the weight's own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Mapping[str, LazyTensor]

    def load(self) -> Tensor:
        """Return the dequantised weight, in `dtype`."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start … stop - 1 of it."""


class Quantizer(ABC):
    """Swaps modules of an empty model for ones that hold fewer bits; the swapped modules quantise while weights stream in.

    trains: whether the weights of swapped modules are parameters that can be trained; else only an adapter beside them can.

    The front door of one that reads quantised checkpoints names them by what config.json calls them:
    {"quant_methods": [the `quant_method` of its `quantization_config`]}.
    """

    trains: ClassVar[bool] = False

    @abstractmethod
    def swap(self, model: nn.Module) -> list[str]:
        """Replace modules of a model on the meta device and return their names.

        A replacement has the call signature of the module it replaces and the method `load_weight(leaf, tensor)`, which receives
        each full-precision tensor of the checkpoint that belonged to the old module, once. What else it may have:

        - `load_parts(leaf, parts)`, for a StoredTensor, of a quantizer that reads quantised checkpoints;
        - `plain()`, which returns the full-precision module that computes the same, so that an adapter can be merged into it;
        - `part(style, index, count)`, for a tensor-parallel group: a module on the same device that holds part `index` of `count`, split
          by "column" (of its outputs) or "row" (of its inputs), and computes exactly what the whole does with it. Raises ConfigError
          naming the layer that does not divide evenly;
        - `check_split(name, style, count)`, of one that is a Linear and is split as any, which raises that error.
        """

    def begin_step(self, step: int) -> None:
        """Hear that optimizer step `step` (from 1) begins: swapped modules that change during training change now."""
        return

    @classmethod
    def stored(cls, settings: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Quantizer:
        """Return the quantizer that a checkpoint was written with. settings: the `quantization_config` of its config.json.

        Raises ModelError naming the setting that is not supported.
        """
        from pegboard.errors import ModelError

        raise ModelError(f"{cls.__name__} reads no quantised checkpoints", fix="name a model in full precision")

    def join(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return the tensors of a checkpoint with one StoredTensor in the place of the parts of each quantised weight.

        Raises ModelError listing the parts that are missing or do not fit together.
        """
        return tensors

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the modules that `swap` would replace and whose weights `store` takes. Raises ConfigError where there is no
        form on disk.
        """
        raise _unwritten(self)

    def store(self, name: str, weight: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Return what is written for the weight of module `name`, under full tensor names. dtype: what the rest of the model is written
        in, and readers compute in. Raises ModelError where the weight is not finite. Called for `chosen` modules only.
        """
        raise _unwritten(self)

    def settings(self, kept: Sequence[str], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return the `quantization_config` for config.json. kept: names of linear layers that are written in full precision."""
        raise _unwritten(self)

    def restore(self, model: nn.Module) -> None:
        """Put plain modules with dequantised weights in the place of the swapped ones, in the dtype of the model."""
        from pegboard.errors import ConfigError

        raise ConfigError(
            f"{type(self).__name__} cannot give full-precision weights back",
            fix="build the model without the quantizer",
        )


def _unwritten(quantizer: Quantizer) -> Exception:
    from pegboard.errors import ConfigError

    return ConfigError(
        f"{type(quantizer).__name__} has no form on disk", fix="choose another, or quantise when the model is loaded"
    )
