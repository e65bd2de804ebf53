"""Calls as Llama 3.2 and 4 write them: [f(a=1, b="x"), g()]."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.parser import ParserFactory
from pegboard_parsers.jsontext import Broken
from pegboard_parsers.machine import END, Machine, Steps
from pegboard_parsers.pythontext import DONE, PythonText

START, STOP = "<|python_start|>", "<|python_end|>"


class PythonicParser(Machine):
    """A list of calls at the beginning of an answer, perhaps between marks. Only offered tools can be called, if any are."""

    def parse(self) -> Steps[None]:
        before, character = yield from self.space((yield))
        read, character = yield from self.word(character, START)
        before += read
        if read == START:
            space, character = yield from self.space(character)
            before += space
        if character == "[" and (not read or read == START):
            character = yield from self._list(before + "[", (yield))
        else:
            self.say(before)
        if self.calls:
            before, character = yield from self.space(character)
            read, character = yield from self.word(character, STOP)
            if read == STOP:
                before, character = yield from self.space(character)
                read = ""
            if read or character != END:
                self.say(before + read)
        yield from self.rest(character)

    def _list(self, before: str, character: str) -> Steps[str]:
        """Read calls to the end of the list and return the next character. before: what is content if there is none."""
        while True:
            space, character = yield from self.space(character)
            before += space
            if character == "]" and self.calls:
                return (yield)
            name, character = yield from self._name(character)
            space, character = yield from self.space(character)
            before += name + space
            if character != "(" or not name or (self.names and name not in self.names):
                self.say(before)
                return character
            whole, character = yield from self._arguments(name, before + "(", (yield))
            if not whole:
                return character
            before, character = yield from self.space(character)
            if character == "]":
                return (yield)
            if character != ",":
                self.say(before)
                return character
            before += ","
            character = yield

    def _name(self, character: str) -> Steps[tuple[str, str]]:
        read = ""
        while character != END and (character.isalnum() or character in "_.") and len(read) < 256:
            read += character
            character = yield
        return read, character

    def _arguments(self, name: str, before: str, character: str) -> Steps[tuple[bool, str]]:
        """Read name=value pairs up to the bracket that ends them. Return whether it came, and the next character.

        The call is given out with its first pair, or with the bracket where there is none.
        """
        pairs = 0
        while True:
            space, character = yield from self.space(character)
            before += space
            if character == ")":
                if not pairs:
                    self.open_call(name)
                self.argue("}" if pairs else "{}")
                return True, (yield)
            key, character = yield from self._name(character)
            space, character = yield from self.space(character)
            before += key + space
            if character != "=" or not key:
                self.say(before)
                return False, character
            before += "="
            space, character = yield from self.space((yield))
            before += space
            if not self._can_begin(character):
                self.say(before)
                return False, character
            if not pairs:
                self.open_call(name)
            self.argue(("{" if not pairs else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            whole, character = yield from self._value(character)
            pairs += 1
            if not whole:
                return False, character
            before, character = yield from self.space(character)
            if character == ",":
                before += ","
                character = yield
            elif character != ")":
                self.say(before)
                return False, character

    @staticmethod
    def _can_begin(character: str) -> bool:
        return character != END and (character.isalnum() or character in "'\"[({+-.")

    def _value(self, character: str) -> Steps[tuple[bool, str]]:
        text = PythonText()
        while character != END:
            try:
                told, used = text.feed(character)
            except Broken:
                return False, character
            self.argue(told)
            if used:
                character = yield
            if text.state == DONE:
                return True, character
        return False, character


class Pythonic(ParserFactory):
    """Parses tool calls of Llama 3.2 and 4 in Python's syntax."""

    def parser(self, tools: Sequence[Mapping[str, Any]], *, prompt: str = "") -> PythonicParser:
        """Return a parser."""
        return PythonicParser(tools)
