"""NVIDIA GPUs as a platform."""

from __future__ import annotations

import re

import torch

from pegboard.accelerator import AcceleratorPlatform
from pegboard.interfaces.platform import Phase
from pegboard.types import AttentionSpec


class CudaPlatform(AcceleratorPlatform):
    """The visible NVIDIA GPUs, numbered as CUDA_VISIBLE_DEVICES leaves them. A MIG instance is a device like any other."""

    kind = "cuda"
    label = "cuda"
    visible = "CUDA_VISIBLE_DEVICES"
    graph_class = "CUDAGraph"

    def foreign(self) -> str:
        # Torch calls AMD's devices "cuda" too.
        return "this torch is a ROCm build, whose devices are those of the platform rocm" if torch.version.hip else ""

    def refusal(self, index: int) -> str:
        generations = [int(re.sub(r"\D", "", arch)) for arch in torch.cuda.get_arch_list()]
        major, minor = torch.cuda.get_device_capability(index)
        # Code runs on newer generations, compiled by the driver if need be, and never on older ones.
        if not generations or 10 * major + minor >= min(generations):
            return ""
        return f"its compute capability is {major}.{minor}, and torch {torch.__version__} begins at {min(generations) / 10}"

    def fast_dtypes(self, index: int) -> set[str]:
        generation = torch.cuda.get_device_capability(index)
        return {name for name, first in {"bf16": (8, 0), "fp8": (8, 9)}.items() if generation >= first}

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("sdpa",)

    def communication_backend(self) -> str:
        return "nccl"
