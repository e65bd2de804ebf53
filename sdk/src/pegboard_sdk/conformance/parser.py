"""The suite of kind `parser`."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pegboard.interfaces.parser import OutputParser, Parsed, ParserFactory
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite

_PLAIN = ("", "Hello.", "Two\n\nlines, 2 < 3 and [a] {b}; größe 大 🎉", "  spaces around \n", "x" * 2000)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer is parsed into. calls: (name, arguments as JSON values)."""

    content: str = ""
    reasoning: str = ""
    calls: Sequence[tuple[str, Any]] = ()


@dataclass(slots=True)
class _Joined:
    """Pieces put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, pieces: Iterable[Parsed]) -> None:
        for piece in pieces:
            self.content += piece.content
            self.reasoning += piece.reasoning
            if piece.tool is None:
                assert not piece.name and not piece.arguments, f"{piece} belongs to no call"
                continue
            if piece.tool == len(self.calls):
                assert piece.name, f"{piece} begins a call without a name"
                self.calls.append([piece.name, ""])
            else:
                assert piece.tool == len(self.calls) - 1, f"{piece} after call {len(self.calls) - 1}"
                assert not piece.name, f"{piece} names a call again"
            self.calls[-1][1] += piece.arguments


@standard
class ParserSuite(PluginSuite):
    """Answers of the format, and what is none.

    samples: text of an answer -> what it is parsed into. At least one for each form that the format has.
    malformed: texts that begin like a call, or like reasoning, and turn out to be none.
    tools: names of the functions that the request offered. prompt: what the answers go on from.
    plain: whether text without marks is content. streams: whether arguments, or reasoning, come before they are complete.
    """

    kind = "parser"
    samples: ClassVar[Mapping[str, Answer]] = {}
    malformed: ClassVar[Sequence[str]] = ()
    tools: ClassVar[Sequence[str]] = ("weather", "search")
    prompt: ClassVar[str] = ""
    plain: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def parser(self) -> OutputParser:
        """Return a parser of one answer."""
        factory: ParserFactory = self.create()
        tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in self.tools]
        return factory.parser(tools, prompt=self.prompt)

    def parsed(self, pieces: Iterable[str]) -> _Joined:
        """Return what the pieces of one answer come to."""
        parser, joined = self.parser(), _Joined()
        for piece in pieces:
            joined.add(parser.push(piece))
        joined.add(parser.finish())
        return joined

    def texts(self) -> Sequence[str]:
        """Return all texts of this class and some plain ones."""
        return [*self.samples, *self.malformed, *_PLAIN]

    def test_front_door_says_what_it_parses(self) -> None:
        """What, and marks that stand in the chat templates of such models."""
        assert self.spec.capabilities.get("parses") in ("tools", "reasoning")
        marks = self.spec.capabilities.get("templates")
        assert isinstance(marks, (list, tuple)) and all(isinstance(mark, str) and mark for mark in marks)

    def test_samples(self) -> None:
        """Content, reasoning and calls are told apart, here with the text in one piece."""
        assert self.samples, "give the class samples"
        for text, wanted in self.samples.items():
            found = self.parsed([text])
            assert (found.content, found.reasoning) == (wanted.content, wanted.reasoning), text
            calls = [(name, json.loads(arguments)) for name, arguments in found.calls]
            assert calls == list(wanted.calls), text

    def test_cuts_do_not_matter(self) -> None:
        """However the text is cut, what comes is the same in the end."""
        for text in self.texts():
            whole = self.parsed([text])
            for seed in range(8):
                assert self.parsed(_cut(text, random.Random(seed))) == whole, f"{text!r}, seed {seed}"
            assert self.parsed(text) == whole, f"{text!r}, a character at a time"

    def test_plain_text_is_content(self) -> None:
        """It comes as it is, white space included."""
        self.needs("plain", "text without marks is no content")
        for text in _PLAIN:
            found = self.parsed([text])
            assert (found.content, found.reasoning, found.calls) == (text, "", [])

    def test_malformed_is_content(self) -> None:
        """No character of it is lost, but perhaps white space."""
        for text in self.malformed:
            found = self.parsed([text])
            assert found.calls == [] and found.reasoning == "", f"{text!r} gave {found}"
            assert found.content.split() == text.split(), f"{text!r} gave {found.content!r}"

    def test_an_answer_may_end_anywhere(self) -> None:
        """What is given out of the beginning of a text is the beginning of what is given out of the text."""
        for text in self.samples:
            whole = self.parsed([text])
            for end in range(len(text)):
                found = self.parsed([text[:end]])
                assert len(found.calls) <= len(whole.calls)
                for (name, arguments), (whole_name, whole_arguments) in zip(found.calls, whole.calls, strict=False):
                    assert name == whole_name and whole_arguments.startswith(arguments), text[:end]

    def test_nothing_is_held_back_for_long(self) -> None:
        """Plain text comes at once, and with `streams` a call or reasoning before it is complete."""
        parser, joined = self.parser(), _Joined()
        joined.add(parser.push("The answer is 42, I think"))
        assert (joined.content or joined.reasoning).startswith("The answer is 42")
        self.needs("streams", "calls and reasoning come whole")
        assert any(map(self._comes_early, self.samples))

    def _comes_early(self, text: str) -> bool:
        """Whether the arguments of one call, or reasoning, came in two parts or more while the text came."""
        parser, parts = self.parser(), Counter[int | None]()
        for character in text:
            parts.update(piece.tool for piece in parser.push(character) if piece.arguments or piece.reasoning)
        return any(count > 1 for count in parts.values())

    def test_parsers_are_apart(self) -> None:
        """Two answers at once do not know of each other."""
        factory: ParserFactory = self.create()
        for text in self.samples:
            one, two = (factory.parser([], prompt=self.prompt) for _ in range(2))
            first, second, whole = _Joined(), _Joined(), _Joined()
            for character in text:
                first.add(one.push(character))
                second.add(two.push(character))
            first.add(one.finish())
            second.add(two.finish())
            alone = factory.parser([], prompt=self.prompt)
            whole.add(alone.push(text))
            whole.add(alone.finish())
            assert first == second == whole

    def test_any_text_is_taken(self) -> None:
        """Marks and their parts in any order, and characters of all kinds, break nothing."""
        parts = [part for text in self.texts() for part in _cut(text, random.Random(0), 12) if part]
        parts += ["\0", "\u2028", "🎉", '"', "\\", "}", "]", ")", ";", "\ud800"]
        for seed in range(200):
            draw = random.Random(seed)
            pieces = draw.choices(parts, k=draw.randint(1, 12))
            assert self.parsed(pieces) == self.parsed(["".join(pieces)])


def _cut(text: str, draw: random.Random, longest: int = 9) -> Iterator[str]:
    """Yield pieces of a text, some of them empty."""
    place = 0
    while place < len(text):
        size = draw.randint(0, longest)
        yield text[place : place + size]
        place += size
