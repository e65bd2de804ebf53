"""Reasoning between <think> and </think>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.parser import ParserFactory
from pegboard_parsers.machine import END, SPACE, Machine, Steps

OPEN, CLOSE = "<think>", "</think>"


class ThinkParser(Machine):
    """Reasoning stands at the beginning. White space around it belongs to nobody. Without an end, all is reasoning.

    opened: the mark is the last thing in the prompt already; an answer may repeat it.
    """

    def __init__(self, *, opened: bool) -> None:
        self._opened = opened
        super().__init__(())

    def parse(self) -> Steps[None]:
        space, character = yield from self.space((yield))
        read, character = yield from self.word(character, OPEN, CLOSE)
        if read != OPEN and not self._opened:
            self.say(space + read)
            yield from self.rest(character)
            return
        if read == OPEN:
            _, character = yield from self.space(character)
            read = ""
        if read != CLOSE:
            character = yield from self._reasoning(read, character)
        _, character = yield from self.space(character)
        yield from self.rest(character)

    def _reasoning(self, held: str, character: str) -> Steps[str]:
        """Read to the end of the reasoning and return the character after the mark. held: what is read of it already."""
        while character != END:
            if character in SPACE:
                held += character
                character = yield
                continue
            read, following = yield from self.word(character, CLOSE)
            if read == CLOSE:
                self.think(held.rstrip(" \t\r\n"))
                return following
            self.think(held + (read or character))
            held = ""
            character = following if read else (yield)
        self.think(held)
        return character


class Think(ParserFactory):
    """Parses reasoning of models that write the first mark themselves, unless the prompt ends with it."""

    opened = False

    def parser(self, tools: Sequence[Mapping[str, Any]], *, prompt: str = "") -> ThinkParser:
        """Return a parser. Where the prompt is known, its end decides whether the answer begins as reasoning."""
        return ThinkParser(opened=prompt.rstrip().endswith(OPEN) if prompt else self.opened)


class ThinkOpened(Think):
    """Parses reasoning of models whose template writes the first mark."""

    opened = True
