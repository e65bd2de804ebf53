from __future__ import annotations

import pytest
import torch

from pegboard.interfaces.platform import Platform
from pegboard_cuda.platform import CudaPlatform
from pegboard_cuda.plugin import SPEC
from pegboard_sdk.conformance import AttentionSuite, PlatformSuite, PluginSuite
from pegboard_sdpa.plugin import SPEC as SDPA


class TestFrontDoor(PluginSuite):
    spec = SPEC


@pytest.mark.gpu
class TestCuda(PlatformSuite):
    spec = SPEC


class Sdpa(AttentionSuite):
    spec = SDPA
    device = "cuda"
    bidirectional = False

    def platform(self) -> Platform:
        return CudaPlatform()


@pytest.mark.gpu
class TestSdpa(Sdpa):
    dtype = torch.float64


@pytest.mark.gpu
class TestSdpaInHalf(Sdpa):
    dtype = torch.bfloat16
    tolerance = 3e-2
