"""Kind `model`: a family of architectures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard.nn.causal_lm import CausalLM
    from pegboard.types import ParallelRule


class ModelFamily(ABC):
    """Builds the modules of a family from a Hugging Face config.

    The front door names what it builds in its capabilities: {"architectures": [...], "model_types": [...]}.
    """

    @abstractmethod
    def build(self, config: Mapping[str, Any]) -> CausalLM:
        """Return the empty model for a parsed `config.json`; called under the meta device, so it must not touch weights.

        Parameter names and shapes are those of the Hugging Face checkpoint. Raises ModelError naming the key when the config
        asks for something that the family does not do.
        """

    @abstractmethod
    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        """Return how each parameter splits over a tensor-parallel group; the first matching rule counts."""

    def adapter_targets(self, config: Mapping[str, Any]) -> Sequence[str]:
        """Return the linear layers that an adapter goes into where its options name none: how the names of these modules end."""
        return ("q_proj", "k_proj", "v_proj", "o_proj")

    def rename(self, name: str) -> str | None:
        """Map a tensor name found in a checkpoint to the model's own; None drops it (a stale buffer, say)."""
        return name
