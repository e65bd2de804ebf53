"""NVIDIA GPUs as a platform."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from pegboard.interfaces.platform import PromptChoice
from pegboard.types import AttentionSpec
from pegboard_cuda.prompts import choices
from pegboard_triton.platform import TritonPlatform


class CudaPlatform(TritonPlatform):
    """The visible NVIDIA GPUs, numbered as CUDA_VISIBLE_DEVICES leaves them. A MIG instance is a device like any other."""

    kind = "cuda"
    label = "cuda"
    visible = "CUDA_VISIBLE_DEVICES"
    graph_class = "CUDAGraph"
    target_kind = "cuda"

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

    def target(self, index: int) -> str:
        major, minor = torch.cuda.get_device_capability(index)
        return str(10 * major + minor)

    def prompt_attention(self, spec: AttentionSpec, dtype: torch.dtype, index: int = 0) -> Sequence[PromptChoice]:
        return choices(spec, dtype, torch.cuda.get_device_capability(index))

    def communication_backend(self) -> str:
        return "nccl"
