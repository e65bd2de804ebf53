"""Calls as Mistral writes them: [TOOL_CALLS][{"name": …, "arguments": {…}}, …], or [TOOL_CALLS]name[ARGS]{…} for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.parser import ParserFactory
from pegboard_parsers.call import read_call
from pegboard_parsers.jsontext import DONE, Broken, JsonText
from pegboard_parsers.machine import END, Machine, Steps

TAG, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
KEYS = ("arguments", "parameters")


class MistralParser(Machine):
    """Calls follow the tag. White space around them is no content."""

    def parse(self) -> Steps[None]:
        return self.marked(TAG, self._calls)

    def _calls(self, before: str, character: str) -> Steps[tuple[bool, str, str]]:
        """Read what follows the tag, in any of its forms."""
        inner, character = yield from self.space(character)
        before += inner
        if character == "[":
            result = yield from self._list(before + "[", (yield))
        elif character == "{":
            result = yield from self._object(before, character)
        else:
            result = yield from self._named(before, character)
        return result

    def _list(self, before: str, character: str) -> Steps[tuple[bool, str, str]]:
        """Read the objects of a list and its end. Return whether a call came last, white space after it, and the next character.

        before: what is content if there is no call, here and below.
        """
        while True:
            space, character = yield from self.space(character)
            found, read, character = yield from read_call(self, character, KEYS, bool)
            if not found:
                self.say(before + space + read)
                return False, "", character
            before, character = yield from self.space(character)
            if character == "]":
                return True, "", (yield)
            if character != ",":
                return True, before, character
            before += ","
            character = yield

    def _object(self, before: str, character: str) -> Steps[tuple[bool, str, str]]:
        found, read, character = yield from read_call(self, character, KEYS, bool)
        if not found:
            self.say(before + read)
        return found, "", character

    def _named(self, before: str, character: str) -> Steps[tuple[bool, str, str]]:
        """Read a name, perhaps an id, and an object of arguments."""
        name, character = yield from self._letters(character)
        marks, character = yield from self.word(character, ID, ARGS)
        if marks == ID:
            identity, character = yield from self._letters(character)
            mark, character = yield from self.word(character, ARGS)
            marks += identity + mark
        if not name or character != "{" or (marks and not marks.endswith(ARGS)):
            self.say(before + name + marks)
            return False, "", character
        text = JsonText()
        self.open_call(name)
        while character != END and text.state != DONE:
            try:
                self.argue(text.feed(character))
            except Broken:
                return False, "", character
            character = yield
        return True, "", character

    def _letters(self, character: str) -> Steps[tuple[str, str]]:
        read = ""
        while character != END and (character.isalnum() or character in "_-.") and len(read) < 256:
            read += character
            character = yield
        return read, character


class Mistral(ParserFactory):
    """Parses tool calls of Mistral's models, old and new."""

    def parser(self, tools: Sequence[Mapping[str, Any]], *, prompt: str = "") -> MistralParser:
        """Return a parser; the names of tools are not compared, since the tag leaves no doubt."""
        return MistralParser(tools)
