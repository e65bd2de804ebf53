"""Kind `platform`: a kind of hardware."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pegboard.types import AttentionSpec

Phase = Literal["train", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device. total_memory and available_memory are bytes; `available` honours every limit that binds this process."""

    index: int
    name: str
    total_memory: int
    available_memory: int


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """An attention plugin that may compute prompts of which nothing is in the cache, beside the one that reads the cache.

    tokens: length of a prompt from which on it is taken. default: whether an automatic choice takes it where it is installed.
    reason: why it is, or why not, for people.
    """

    name: str
    tokens: int
    default: bool
    reason: str


class Graph(Protocol):
    """A captured piece of work that can be run again on the same buffers."""

    def replay(self) -> None:
        """Run the captured work once more; inputs and outputs are the tensors that it was captured with."""


class Rehearsal(Protocol):
    """Kernels that are being made ready."""

    def watched(self) -> None:
        """Wait until it is known which ones are needed; whoever needs one of them waits for it, and nobody for the others."""

    def close(self) -> None:
        """Leave alone what has not been begun."""


class Platform(ABC):
    """Hardware of one kind. An instance holds no state of a run; everything that differs by device takes `index`."""

    @abstractmethod
    def devices(self) -> list[DeviceInfo]:
        """List the usable devices, honouring the vendor's visible-device rules. Empty when there is none."""

    @abstractmethod
    def device(self, index: int = 0) -> torch.device:
        """Return torch's device. Raises DeviceError when `index` does not exist, naming those that do."""

    @abstractmethod
    def capabilities(self, index: int = 0) -> frozenset[str]:
        """Return what the device does well, as words: "bf16" (fast matrix products in bfloat16), "fp8" (in float8_e4m3fn), "fp8_fnuz" (in
        float8_e4m3fnuz), "graphs" (see `capture`), "p2p" (devices read each other's memory), "pinned" (copies from pinned memory
        of the host run beside the work), "apart" (it computes behind the caller's back, from memory of its own, as every device but
        torch's host does without saying so).
        """

    @abstractmethod
    def default_dtype(self, index: int = 0) -> torch.dtype:
        """Return the dtype in which this device computes fastest at full quality, used for `dtype: auto`."""

    @abstractmethod
    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        """Return names of attention plugins for such layers in this phase, best first."""

    def attention_reason(self, phase: Phase, spec: AttentionSpec) -> str:
        """Return, for people, why `attention_preference` begins as it does; empty where there is no choice."""
        return ""

    def prompt_attention(self, spec: AttentionSpec, dtype: torch.dtype, index: int = 0) -> Sequence[PromptChoice]:
        """Return attention plugins for prompts of which nothing is in the cache yet, best first; empty where one computes them as well as
        all else. See `pegboard.fresh`.
        """
        return ()

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        """Return replacements for entries of `pegboard.ops`, by op name; read once when a model is built.

        Those for the phase "train" are differentiable wherever the replaced function is.
        """
        return {}

    def rehearse(self, work: Callable[[], None], index: int = 0) -> Rehearsal | None:
        """Do `work` in a thread of its own, where kernels are not launched: in yet other threads they are made ready for being launched so.

        work: computes as a model is going to, on values that do not matter; what kernels would have written is not written, so that no
        number that says where something lies may come from one. It may raise.
        None, `work` not being done, where a first launch takes no longer than others.
        """
        return None

    def configure(self, *, threads: int | None = None) -> None:
        """Set process-wide knobs (threads, allocator) before a model is built. Called once by a command, never by a library."""
        return

    def reserve(self, num_bytes: int, index: int = 0) -> Tensor | None:
        """Return memory [num_bytes] uint8 for the weights of a model that is served, laid out for being read from end to end at every
        step; None where tensors of their own do as well.
        """
        return None

    @abstractmethod
    def synchronize(self, index: int = 0) -> None:
        """Wait for all work given to the device."""

    def graph_memory(self, index: int = 0) -> object | None:
        """Return working memory for graphs that are never run at the same time; None where they cannot share it."""
        return None

    def capture(self, work: Callable[[], None], index: int = 0, memory: object | None = None) -> Graph:
        """Capture `work` as a graph. memory: of `graph_memory`, for the tensors that `work` makes.

        Raises DeviceError on a device without the capability "graphs".
        """
        from pegboard.errors import DeviceError

        raise DeviceError(
            f"{type(self).__name__} cannot capture graphs",
            fix="run without graphs: this device has no capability 'graphs'",
        )

    def graph_batch(self, count: int) -> int:
        """Return the number of sequences of the captured decode step that serves `count` of them; at least `count`."""
        return 1 << (count - 1).bit_length()

    def communication_backend(self) -> str:
        """Return the torch.distributed backend for this hardware."""
        return "gloo"

    def notes(self, index: int = 0) -> Sequence[str]:
        """Return further lines about a device for `peg doctor`, such as the version of a compiler."""
        return ()
