from __future__ import annotations

import pytest
import torch

from pegboard_sdk.conformance import PlatformSuite, PluginSuite
from pegboard_xpu.plugin import SPEC


class TestFrontDoor(PluginSuite):
    spec = SPEC


@pytest.mark.gpu
@pytest.mark.skipif(not torch.xpu.is_available(), reason="needs an Intel GPU and an XPU build of torch")
class TestXpu(PlatformSuite):
    spec = SPEC
