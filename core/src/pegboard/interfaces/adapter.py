"""Kind `adapter`: trainable additions to a frozen model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pegboard.nn.parallel import Split
    from pegboard.ops import KernelTable


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter folder that was opened.

    base: id or folder of the model that it belongs to, empty where the files do not tell. tensors: for `Adapter.load`.
    whole: parameters that are saved as they are beside the adapter, by the model's names (a trained score).
    """

    adapter: Adapter
    base: str
    tensors: Mapping[str, Tensor]
    whole: Mapping[str, Tensor] = field(default_factory=dict)


class AdapterSlots(ABC):
    """Several adapters of one kind in one model at once, each in a slot; a row of a batch says which it uses.

    Rows choose by `ForwardContext.adapter_slots`; those with -1, and with a slot that is empty here, compute as the model was built.
    Requests of a batch do not influence each other: what one adapter holds never reaches a row that does not use it.
    """

    @abstractmethod
    def load(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Put an adapter into a slot, in place of what is there. tensors, config: as `Adapter.tensors` and `Adapter.config` give them.

        Raises ConfigError for an adapter that cannot be served beside others (it can be merged instead), ModelError listing the
        missing, unexpected and mis-shaped tensors; the slots are then as before.
        """

    @abstractmethod
    def unload(self, slot: int) -> None:
        """Empty a slot; nothing happens when it is empty. With no adapter left the model is the plain one again."""

    def bind(self, kernels: KernelTable) -> None:
        """Compute with these ops, of which a platform may have replaced some, this plugin's own among them. Called before any load."""
        return

    def captured_key(self) -> Hashable | None:
        """Return what work that is captured with adapters depends on beside `ForwardContext.adapter_rows`: it is good for as long as this
        stays the same, whatever the slots then hold. None: such work cannot be captured.
        """
        return None


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

    @classmethod
    def serving(cls, model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype) -> AdapterSlots:
        """Return slots for adapters of this kind in a loaded model that computes in `dtype`; it is not changed before one is loaded.

        num_slots: slots are numbered below it. max_rank: an adapter of a higher rank is refused.
        """
        from pegboard.errors import ConfigError

        raise ConfigError(f"{cls.__name__} cannot be served beside others", fix="merge the adapter into the model")

    @classmethod
    def serving_bytes(cls, model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype) -> int:
        """Return the most memory that the slots of `serving` may come to hold, on the model's device; 0 where it cannot be told.

        The model may be an empty one (meta device).
        """
        return 0

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

    def parameter_names(self, model: nn.Module) -> Mapping[str, str]:
        """Return the model's own name of each parameter, by its name in `tensors`."""
        own = {id(parameter): name for name, parameter in model.named_parameters()}
        places = {parameter.data_ptr(): own[id(parameter)] for parameter in model.parameters()}
        return {name: places[tensor.data_ptr()] for name, tensor in self.tensors(model).items()}

    def divided(self, model: nn.Module) -> Mapping[str, Split | None]:
        """Return how the attached parameters follow from layers that are split over a tensor-parallel group (their `divided`).

        By the model's names: a Split, or None for a parameter that every rank has and of whose gradient each computes a part; any
        other one has the same gradient on every rank. Raises ConfigError for what cannot be computed in parts.
        """
        from pegboard.errors import ConfigError

        raise ConfigError(f"{type(self).__name__} does not say how it splits", fix="set mesh.tensor=1")

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
