"""Calls as Llama 3.x writes them: {"name": …, "parameters": {…}}, several with ; between them, perhaps after <|python_tag|>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.parser import ParserFactory
from pegboard_parsers.call import read_call
from pegboard_parsers.machine import END, Machine, Steps

TAG = "<|python_tag|>"
KEYS = ("parameters", "arguments")


class LlamaParser(Machine):
    """Calls stand at the beginning of an answer, or after the tag. An answer in JSON that names no offered tool is content."""

    def parse(self) -> Steps[None]:
        space, character = yield from self.space((yield))
        if character == "{":
            character = yield from self._calls(space, character)
        else:
            self.say(space)
        while character != END:
            if character != "<":
                self.say(character)
                character = yield
                continue
            read, character = yield from self.word(character, TAG)
            if read != TAG:
                self.say(read)
                continue
            space, character = yield from self.space(character)
            if character == "{":
                character = yield from self._calls(TAG + space, character)
            else:
                self.say(TAG + space)

    def _calls(self, before: str, character: str) -> Steps[str]:
        """Read calls and return the next character. before: what is content if there is none."""
        while True:
            found, read, character = yield from read_call(self, character, KEYS, self._offered)
            if not found:
                self.say(before + read)
                return character
            before, character = yield from self.space(character)
            if character == ";":
                space, character = yield from self.space((yield))
                before += ";" + space
            if character != "{":
                if character != END or ";" in before:
                    self.say(before)
                return character

    def _offered(self, name: str) -> bool:
        return not self.names or name in self.names


class Llama(ParserFactory):
    """Parses tool calls of Llama 3.1, 3.2 and 3.3."""

    def parser(self, tools: Sequence[Mapping[str, Any]], *, prompt: str = "") -> LlamaParser:
        """Return a parser."""
        return LlamaParser(tools)
