from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from pegboard.fresh import FreshPrompts
from pegboard.interfaces.platform import Platform
from pegboard.plugins.spec import PluginSpec
from pegboard_sdk.conformance import AttentionSuite
from pegboard_sdk.toys.attention import ReferenceAttention
from pegboard_triton.attention.backend import TritonAttention
from pegboard_triton.plugin import ATTENTION

ON_GPU = torch.cuda.is_available()


class Triton(AttentionSuite):
    spec = ATTENTION
    device = "cuda" if ON_GPU else "cpu"
    bidirectional = False
    gradients = False

    def platform(self) -> Platform | None:
        if not ON_GPU:
            return None
        from pegboard_cuda.platform import CudaPlatform

        return CudaPlatform()


class TestFloat32(Triton):
    pass


class Composed(FreshPrompts):
    """Prompts of three tokens and more with nothing cached by the oracle, all else by the kernels, which write for both."""

    def __init__(self) -> None:
        super().__init__(TritonAttention(), ReferenceAttention(), 3)


@pytest.mark.slow
class TestFreshPromptsApart(Triton):
    spec = PluginSpec(kind="attention", target=f"{__name__}:Composed")
    installed = False


@pytest.mark.gpu
class TestBfloat16(Triton):
    dtype = torch.bfloat16
    tolerance = 3e-2
    num_heads: ClassVar[int] = 16
    head_dim = 128


@pytest.mark.gpu
class TestFloat16(Triton):
    dtype = torch.float16
    tolerance = 4e-3
    num_heads: ClassVar[int] = 10
    head_dim = 80
    page_size = 16
