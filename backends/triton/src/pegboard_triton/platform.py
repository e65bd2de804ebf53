"""What platforms whose kernels are these have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from pegboard.accelerator import AcceleratorPlatform
from pegboard.interfaces.platform import Graph, Phase
from pegboard.types import AttentionSpec
from pegboard_triton import compiler, table
from pegboard_triton.kernel import Rehearsal, settle


class TritonPlatform(AcceleratorPlatform):
    """An accelerator that Triton compiles for.

    target_kind: Triton's word for it, "cuda", "hip" or "xpu".
    """

    target_kind: ClassVar[str]

    @abstractmethod
    def target(self, index: int) -> str:
        """Return what kernels are compiled for on this device, without the kind, such as "90" or "gfx90a"."""

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return table.replacements(phase, dtype, self.target_kind)

    def rehearse(self, work: Callable[[], None], index: int = 0) -> Rehearsal | None:
        return None if compiler.lacking(self.target_kind) else Rehearsal(self.device(index)).begin(work)

    def capture(self, work: Callable[[], None], index: int = 0, memory: Any = None) -> Graph:
        """As of every accelerator, when no kernel is being made ready."""
        settle()
        return super().capture(work, index, memory)

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("sdpa",) if phase == "train" or compiler.lacking(self.target_kind) else ("triton", "sdpa")

    def attention_reason(self, phase: Phase, spec: AttentionSpec) -> str:
        if phase == "train":
            return "torch's kernels have a backward pass"
        return compiler.lacking(self.target_kind) or "it reads pages in place, and of each sequence what it has"

    def notes(self, index: int = 0) -> Sequence[str]:
        return compiler.notes(f"{self.target_kind}:{self.target(index)}", self.module.get_device_name(index))
