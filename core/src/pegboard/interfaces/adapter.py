"""Kind `adapter`: trainable additions to a frozen model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter folder that was opened. base: id or folder of the model that it belongs to. tensors: for `Adapter.load`."""

    adapter: Adapter
    base: str
    tensors: Mapping[str, Tensor]


class Adapter(ABC):
    """An adapter method with its options; constructed with the validated options of its schema.

    The front door of one that reads folders says in its capabilities how they are recognised: {"markers": ["adapter_config.json"]}.
    """

    @classmethod
    def open(cls, folder: Path) -> AdapterFiles:
        """Read a folder that this adapter's `config` and `tensors` were written to; the instance may be of a sibling class.

        Raises ModelError naming the file that is missing or damaged, or the setting that is not supported.
        """
        from pegboard.errors import ModelError

        raise ModelError(
            f"{cls.__name__} cannot read adapter folders", fix="merge the adapter with the tool that wrote it"
        )

    @abstractmethod
    def attach(self, model: nn.Module) -> list[str]:
        """Swap the targeted modules of an empty model (meta device) for adapted ones, freeze every other parameter, and return
        the names of the adapted modules. Raises ConfigError when no module matches, naming the patterns and the modules there are.
        """

    @abstractmethod
    def initialise(self, model: nn.Module, *, seed: int, dtype: torch.dtype) -> None:
        """Give the adapter's parameters their first values, on the device of the weights they adapt; base weights are in place."""

    @abstractmethod
    def tensors(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the adapter's parameters under the names of PEFT's adapter_model.safetensors."""

    @abstractmethod
    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Load parameters named as in `tensors`. Raises ModelError listing the missing, unexpected and mis-shaped ones together."""

    @abstractmethod
    def config(self, base: str) -> Mapping[str, Any]:
        """Return the content of PEFT's adapter_config.json; `base` is the id or folder of the model that it belongs to."""

    @abstractmethod
    def merge(self, model: nn.Module) -> None:
        """Add the adapter into the base weights and put the plain modules back."""

    @abstractmethod
    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the model computes as if it had no adapter."""
