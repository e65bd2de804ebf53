"""What all parsers share: a generator that takes the text a character at a time, and what it gives out.

What is given out depends on the characters so far and on nothing else, so that it cannot matter how the text was cut into pieces.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

from pegboard.interfaces.parser import OutputParser, Parsed

END = ""
"""What a generator is sent in place of a character when the text has ended."""
SPACE = frozenset(" \t\r\n")

T = TypeVar("T")
Steps = Generator[None, str, T]
"""Takes characters and, by `yield from`, returns a T. It is given the character at hand and returns the first one that it did not use."""


class Machine(OutputParser):
    """A parser written as a generator, `parse`, which gives out text by `say`, `think`, `open_call` and `argue`.

    names: of the tools that the request offered. calls: how many there were in this answer.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self.names = frozenset(_names(tools))
        self.calls = 0
        self._told: list[tuple[str, int | None, str]] = []
        self._steps = self.parse()
        next(self._steps)

    @abstractmethod
    def parse(self) -> Steps[None]:
        """Parse one answer. Returns after END."""

    def marked(self, mark: str, calls: Callable[[str, str], Steps[tuple[bool, str, str]]]) -> Steps[None]:
        """Parse an answer in which calls stand behind a mark; white space around them is no content.

        calls: given what is content if there is no call, the mark included, and the next character; it reads the calls and returns
        whether one came last, white space after it, and the next character.
        """
        character, space, called = (yield), "", False
        while character != END:
            if character in SPACE:
                space += character
                character = yield
                continue
            read, following = yield from self.word(character, mark)
            if read == mark:
                called, space, character = yield from calls(space + mark, following)
                continue
            self.say(space + (read or character))
            called, space = False, ""
            character = following if read else (yield)
        if not called:
            self.say(space)

    def push(self, text: str) -> Sequence[Parsed]:
        """Add text and return what is certain with it."""
        for character in text:
            self._steps.send(character)
        return self._take()

    def finish(self) -> Sequence[Parsed]:
        """End the answer and return what was held back."""
        try:
            self._steps.send(END)
        except StopIteration:
            return self._take()
        raise RuntimeError(f"{type(self).__name__} goes on after the end")

    def say(self, text: str) -> None:
        """Give out content."""
        self._give("content", None, text)

    def think(self, text: str) -> None:
        """Give out reasoning."""
        self._give("reasoning", None, text)

    def open_call(self, name: str) -> None:
        """Begin a tool call, to which all arguments belong that come before the next one."""
        self._give("name", self.calls, name)
        self.calls += 1

    def argue(self, text: str) -> None:
        """Give out a piece of the JSON of the last call's arguments."""
        self._give("arguments", self.calls - 1, text)

    def word(self, character: str, *wanted: str) -> Steps[tuple[str, str]]:
        """Read one of `wanted`, of which none begins another and whose first characters do not occur in them again.

        Return what of it was there, and the next character.
        """
        read = ""
        while character != END and any(word.startswith(read + character) for word in wanted):
            read += character
            character = yield
            if read in wanted:
                break
        return read, character

    def space(self, character: str) -> Steps[tuple[str, str]]:
        """Read white space. Return it and the next character."""
        read = ""
        while character in SPACE:
            read += character
            character = yield
        return read, character

    def rest(self, character: str) -> Steps[None]:
        """Give out everything from here on as content."""
        while character != END:
            self.say(character)
            character = yield

    def _give(self, kind: str, tool: int | None, text: str) -> None:
        if text:
            self._told.append((kind, tool, text))

    def _take(self) -> Sequence[Parsed]:
        """Return what was given out since the last time, as few pieces."""
        told, self._told = self._told, []
        pieces: list[Parsed] = []
        for (kind, tool), group in groupby(told, key=lambda entry: entry[:2]):
            text = "".join(entry[2] for entry in group)
            if kind == "arguments" and pieces and pieces[-1].tool == tool:
                pieces[-1] = replace(pieces[-1], arguments=text)
            else:
                pieces.append(Parsed(**{kind: text}, tool=tool))
        return pieces


def _names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    functions = [tool.get("function", tool) for tool in tools]
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and "name" in function]
