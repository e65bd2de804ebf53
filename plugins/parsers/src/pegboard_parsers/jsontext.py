"""JSON that is checked while it comes, a character at a time."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_NUMBER_LETTERS = frozenset("+-.0123456789eE")
_LITERALS = ("true", "false", "null")
_SPACE = frozenset(" \t\r\n")
_ESCAPED = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")

# What may come next.
VALUE, FIRST_VALUE, KEY, FIRST_KEY, COLON, COMMA = "value", "first value", "key", "first key", "colon", "comma"
_STRING, _ESCAPE, _HEXES, _WORD = "string", "escape", "hexes", "word"
DONE = "done"


class Broken(Exception):
    """The text is not what it would have to be; the character at hand was not used."""


class JsonText:
    """One JSON value, checked as it comes.

    state: what may come next, DONE after the value. stack: "{" and "[" of the objects and lists that are open.
    key: text of the last key, quotes included, of the object that is open.
    """

    def __init__(self) -> None:
        self.state = VALUE
        self.stack: list[str] = []
        self.key = ""
        self._is_key = False
        self._hexes = 0
        self._word = ""

    @property
    def in_word(self) -> bool:
        """Whether a number or literal is being read, which only the character after it ends."""
        return self.state == _WORD

    def feed(self, character: str) -> str:
        """Take a character and return it, or what stands for it: line breaks within texts, which models write, are escaped.

        Raises Broken when the text cannot go on like this.
        """
        if self.state in (_STRING, _ESCAPE, _HEXES):
            return self._in_string(character)
        if self.state == _WORD:
            if character in _NUMBER_LETTERS or character.isalpha():
                self._word += character
                if len(self._word) > 400:
                    raise Broken
                return character
            self._end_word()
        if character in _SPACE:
            return character
        self._between(character)
        return character

    def end(self) -> bool:
        """Return whether the text may end here: a number ends with it."""
        if self.state == _WORD:
            self._end_word()
        return self.state == DONE

    def _between(self, character: str) -> None:
        state = self.state
        if state in (VALUE, FIRST_VALUE) and self._begin_value(character):
            return
        if character == '"' and state in (KEY, FIRST_KEY):
            self.state, self._is_key, self.key = _STRING, True, '"'
        elif character == ":" and state == COLON:
            self.state = VALUE
        elif character == "," and state == COMMA:
            self.state = KEY if self.stack[-1] == "{" else VALUE
        elif character == "}" and self.stack[-1:] == ["{"] and state in (FIRST_KEY, COMMA):
            self._close()
        elif character == "]" and self.stack[-1:] == ["["] and state in (FIRST_VALUE, COMMA):
            self._close()
        else:
            raise Broken

    def _begin_value(self, character: str) -> bool:
        if character in "{[":
            self.stack.append(character)
            self.state = FIRST_KEY if character == "{" else FIRST_VALUE
        elif character == '"':
            self.state, self._is_key = _STRING, False
        elif character in "-0123456789tfn":
            self.state, self._word = _WORD, character
        else:
            return False
        return True

    def _close(self) -> None:
        self.stack.pop()
        self.state = COMMA if self.stack else DONE

    def _in_string(self, character: str) -> str:
        told = character
        if self.state == _ESCAPE:
            if character == "u":
                self.state, self._hexes = _HEXES, 4
            elif character in _ESCAPED:
                self.state = _STRING
            else:
                raise Broken
        elif self.state == _HEXES:
            if character not in _HEX:
                raise Broken
            self._hexes -= 1
            self.state = _HEXES if self._hexes else _STRING
        elif character == "\\":
            self.state = _ESCAPE
        elif character == '"':
            self.state = COLON if self._is_key else COMMA if self.stack else DONE
        elif character < " ":
            told = f"\\u{ord(character):04x}"
        if self._is_key:
            self.key += told
        return told

    def _end_word(self) -> None:
        if self._word not in _LITERALS and not _NUMBER.fullmatch(self._word):
            raise Broken
        self.state = COMMA if self.stack else DONE
