from __future__ import annotations

from pegboard_grammar.plugin import SPEC
from pegboard_sdk.conformance import GrammarSuite


class TestLlguidance(GrammarSuite):
    spec = SPEC
