"""Calls as Hermes and Qwen write them: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.parser import ParserFactory
from pegboard_parsers.call import read_call
from pegboard_parsers.machine import Machine, Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEYS = ("arguments", "parameters")


class HermesParser(Machine):
    """Calls may stand anywhere. White space around them is no content. The mark at the end may be missing."""

    def parse(self) -> Steps[None]:
        return self.marked(OPEN, self._calls)

    def _calls(self, before: str, character: str) -> Steps[tuple[bool, str, str]]:
        """Read what follows the mark. Return whether a call came last, white space after it, and the next character.

        before: what is content if there is no call.
        """
        while True:
            space, character = yield from self.space(character)
            found, read, character = yield from read_call(self, character, KEYS, bool)
            if not found:
                self.say(before + space + read)
                return False, "", character
            before, character = yield from self.space(character)
            if character == "{":
                continue  # some models put several objects between one pair of marks
            read, character = yield from self.word(character, CLOSE, OPEN)
            before += read
            if read != OPEN or not before.endswith(OPEN):
                break
        if read == CLOSE:
            return True, "", character
        if read:
            self.say(before)
            return False, "", character
        return True, before, character


class Hermes(ParserFactory):
    """Parses tool calls of the Hermes and Qwen families."""

    def parser(self, tools: Sequence[Mapping[str, Any]], *, prompt: str = "") -> HermesParser:
        """Return a parser; the names of tools are not compared, since the marks leave no doubt."""
        return HermesParser(tools)
