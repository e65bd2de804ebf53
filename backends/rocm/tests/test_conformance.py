from __future__ import annotations

import pytest
import torch

from pegboard_rocm.plugin import SPEC
from pegboard_sdk.conformance import PlatformSuite, PluginSuite


class TestFrontDoor(PluginSuite):
    spec = SPEC


@pytest.mark.gpu
@pytest.mark.skipif(not torch.version.hip, reason="needs an AMD GPU and a ROCm build of torch")
class TestRocm(PlatformSuite):
    spec = SPEC
