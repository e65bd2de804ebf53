"""From the text of an answer to content, reasoning and tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegboard.errors import ConfigError
from pegboard.interfaces.parser import OutputParser, Parsed, ParserFactory
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.plugins.load import Registry
from pegboard_server.calls import ForcedCall, ForcedCalls


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says about tools. tools: in OpenAI's shape. choice: "none", "auto", "required" or a function's name."""

    tools: Sequence[Mapping[str, Any]] = ()
    choice: str = "none"
    parallel: bool = True

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call, and so is written as JSON alone."""
        return self.choice not in ("none", "auto")


@dataclass(slots=True)
class AnswerParser:
    """Parses one answer: reasoning is taken out first, calls are looked for in the rest. called: whether there was one."""

    reasoning: OutputParser | None = None
    tools: OutputParser | None = None
    parallel: bool = True
    called: bool = field(default=False, init=False)

    def push(self, text: str) -> list[Parsed]:
        """Add text and return what is certain with it."""
        pieces = self.reasoning.push(text) if self.reasoning else [Parsed(content=text)] if text else []
        return list(self._kept(self._search(pieces)))

    def finish(self) -> list[Parsed]:
        """End the answer and return what was held back."""
        pieces = [*self._search(self.reasoning.finish() if self.reasoning else [])]
        if self.tools is not None:
            pieces += self.tools.finish()
        return list(self._kept(pieces))

    def _search(self, pieces: Sequence[Parsed]) -> Iterator[Parsed]:
        for piece in pieces:
            if self.tools is None or not piece.content:
                yield piece
                continue
            if piece.reasoning:
                yield Parsed(reasoning=piece.reasoning)
            yield from self.tools.push(piece.content)

    def _kept(self, pieces: Sequence[Parsed] | Iterator[Parsed]) -> Iterator[Parsed]:
        for piece in pieces:
            if piece.tool is None or piece.tool == 0 or self.parallel:
                self.called = self.called or piece.tool is not None
                yield piece


class Parsers:
    """Makes parsers of the model's formats. tools, reasoning: None where the model's format is not known."""

    def __init__(self, tools: ParserFactory | None = None, reasoning: ParserFactory | None = None) -> None:
        self.tools, self.reasoning = tools, reasoning

    @classmethod
    def choose(cls, registry: Registry, tokenizer: Tokenizer, *, tools: str, reasoning: str) -> Parsers:
        """Return the parsers that are named, or with "auto" those whose marks stand in the chat template; "none" is none.

        Raises ConfigError for one that parses something else, PluginError for one that cannot be had.
        """
        template = template_text(tokenizer)
        return cls(_factory(registry, template, "tools", tools), _factory(registry, template, "reasoning", reasoning))

    def parser(self, use: ToolUse, prompt: str = "") -> AnswerParser:
        """Return a parser for one answer. A forced call is JSON whatever the model's own format. prompt: the end of its text."""
        if use.forced:
            forced = ForcedCalls() if use.choice == "required" else ForcedCall(use.choice)
            return AnswerParser(None, forced, use.parallel)
        wanted = self.tools if use.choice == "auto" and use.tools else None
        return AnswerParser(
            self.reasoning.parser(use.tools, prompt=prompt) if self.reasoning else None,
            wanted.parser(use.tools, prompt=prompt) if wanted else None,
            use.parallel,
        )


def template_text(tokenizer: Tokenizer) -> str:
    """Return the chat templates among a tokenizer's files, one after the other."""
    found = []
    for name, content in tokenizer.files().items():
        if name.endswith(".jinja"):
            found.append(content.decode("utf-8", "replace"))
        elif name in ("tokenizer_config.json", "chat_template.json"):
            value = json.loads(content).get("chat_template")
            entries = value if isinstance(value, list) else [value]
            found += [str(entry.get("template")) if isinstance(entry, dict) else str(entry or "") for entry in entries]
    return "\n".join(found)


def _factory(registry: Registry, template: str, what: str, name: str) -> ParserFactory | None:
    if name == "none":
        return None
    if name != "auto":
        parses = registry.spec("parser", name).capabilities.get("parses")
        if parses != what:
            names = ", ".join(registry.match("parser", "parses", what)) or "none is installed"
            raise ConfigError(f"parser {name!r} parses {parses}, not {what}", fix=f"use one of: {names}")
        factory: ParserFactory = registry.create("parser", name)
        return factory
    for record, spec in registry.candidates("parser"):
        marks = spec.capabilities.get("templates", ())
        if spec.capabilities.get("parses") != what or not isinstance(marks, (list, tuple)):
            continue
        if any(str(mark) in template for mark in marks):
            chosen: ParserFactory = registry.create("parser", record.name)
            return chosen
    return None
