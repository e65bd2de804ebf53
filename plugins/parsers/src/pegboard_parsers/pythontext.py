"""Values written as Python literals, turned into JSON while they come, a character at a time."""

from __future__ import annotations

import json
import re

from pegboard_parsers.jsontext import Broken

_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_NUMBER = re.compile(r"[+-]?(\d[\d_]*)?(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_SPACE = frozenset(" \t\r\n")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_HEXES = {"x": 2, "u": 4, "U": 8}
_CLOSING = {"[": "]", "(": ")", "{": "}"}

VALUE, FIRST, COLON, COMMA, DONE = "value", "first", "colon", "comma", "done"
_STRING, _ESCAPE, _HEX, _WORD = "string", "escape", "hex", "word"


class PythonText:
    """One literal: texts in quotes, numbers, True, False, None, lists, tuples (which become lists) and dicts with texts as keys.

    state: DONE after the value. A number or a word ends with the character after it, which `feed` then does not use.
    """

    def __init__(self) -> None:
        self.state = VALUE
        self._stack: list[str] = []
        self._after_colon = False
        self._quote = ""
        self._word = ""
        self._hexes = 0

    def feed(self, character: str) -> tuple[str, bool]:
        """Return the JSON that a character adds, and whether it was used. Raises Broken where the text cannot go on like this."""
        if self.state in (_STRING, _ESCAPE, _HEX):
            return self._in_string(character), True
        told = ""
        if self.state == _WORD:
            if character.isalnum() or character in "+-._":
                self._word += character
                if len(self._word) > 400:
                    raise Broken
                return "", True
            told = self._end_word()
            if self.state == DONE:
                return told, False
        if character in _SPACE:
            return told, True
        return told + self._between(character), True

    def _between(self, character: str) -> str:
        closing = _CLOSING[self._stack[-1]] if self._stack else ""
        if self.state == COMMA and character == ",":
            # What JSON has no place for, a comma before the end, is told with the value that follows.
            self.state = VALUE
            return ""
        if character == closing and (self.state in (FIRST, COMMA) or (self.state == VALUE and not self._after_colon)):
            opened = self._stack.pop()
            self._end_value()
            return "}" if opened == "{" else "]"
        if self.state == COLON and character == ":":
            self.state, self._after_colon = VALUE, True
            return ": "
        if self.state not in (VALUE, FIRST):
            raise Broken
        comma = ", " if self.state == VALUE and self._stack and not self._after_colon else ""
        return comma + self._begin_value(character)

    def _begin_value(self, character: str) -> str:
        is_key = self._stack[-1:] == ["{"] and not self._after_colon
        if character in "'\"":
            self.state, self._quote = _STRING, character
            return '"'
        if is_key:
            raise Broken
        if character in _CLOSING:
            self._stack.append(character)
            self.state, self._after_colon = FIRST, False
            return "{" if character == "{" else "["
        if character.isalnum() or character in "+-.":
            self.state, self._word = _WORD, character
            return ""
        raise Broken

    def _in_string(self, character: str) -> str:
        if self.state == _HEX:
            return self._in_hex(character)
        if self.state == _ESCAPE:
            self.state = _STRING
            if character in _HEXES:
                self.state, self._word, self._hexes = _HEX, "", _HEXES[character]
                return ""
            if character in "'\"\\":
                return _inside(character)
            return _inside(_ESCAPES.get(character, "\\" + character))
        if character == "\\":
            self.state = _ESCAPE
            return ""
        if character == self._quote:
            if self._stack[-1:] == ["{"] and not self._after_colon:
                self.state = COLON
            else:
                self._end_value()
            return '"'
        return _inside(character)

    def _in_hex(self, character: str) -> str:
        self._word += character
        if character not in "0123456789abcdefABCDEF":
            raise Broken
        if len(self._word) < self._hexes:
            return ""
        self.state = _STRING
        code = int(self._word, 16)
        if code > 0x10FFFF:
            raise Broken
        return _inside(chr(code))

    def _end_word(self) -> str:
        word = self._word
        told = _WORDS.get(word) or _number(word)
        self._end_value()
        return told

    def _end_value(self) -> None:
        self._after_colon = False
        self.state = COMMA if self._stack else DONE


def _number(word: str) -> str:
    if not _NUMBER.fullmatch(word) or not any(letter.isdigit() for letter in word) or len(word) > 300:
        raise Broken
    try:
        return json.dumps(int(word) if re.fullmatch(r"[+-]?[\d_]+", word) else float(word), allow_nan=False)
    except ValueError:
        raise Broken from None


def _inside(text: str) -> str:
    """Return a text as it stands between the quotes of JSON; halves of surrogate pairs are escaped."""
    return json.dumps(text, ensure_ascii=any("\ud800" <= letter <= "\udfff" for letter in text))[1:-1]
