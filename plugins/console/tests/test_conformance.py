from __future__ import annotations

from pegboard_console.plugin import SPEC
from pegboard_sdk.conformance import LoggerSuite

LINES = {"style": "lines", "every": 1}
BAR = {"style": "bar"}


class TestLines(LoggerSuite):
    spec = SPEC
    options = LINES
    readable = False


class TestBar(LoggerSuite):
    spec = SPEC
    options = BAR
    readable = False
