from __future__ import annotations

from pegboard_sdk.conformance import AttentionSuite
from pegboard_sdpa.plugin import SPEC


class TestSdpa(AttentionSuite):
    spec = SPEC
    bidirectional = False
