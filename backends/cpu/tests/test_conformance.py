from __future__ import annotations

from pegboard_cpu.plugin import SPEC
from pegboard_sdk.conformance import PlatformSuite


class TestCpu(PlatformSuite):
    spec = SPEC
