"""A call written as a JSON object, {"name": …, "arguments": {…}}, given out as soon as it is known to be one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from pegboard_parsers.jsontext import COMMA, DONE, VALUE, Broken, JsonText
from pegboard_parsers.machine import END, SPACE, Machine, Steps


class CallText:
    """The object.

    keys: names of the key that holds the arguments. accept: whether a function of this name may be called.
    name: of the function, once it is read. begun: whether it is certain that this is a call: name and arguments are there.
    Keys besides these two do not matter. Arguments that come as a text of JSON are taken out of it, null is none.
    """

    def __init__(self, keys: Sequence[str], accept: Callable[[str], bool]) -> None:
        self._text, self._keys, self._accept = JsonText(), keys, accept
        self._key: str | None = None  # of the value that is being read
        self._value: list[str] = []
        self._fresh: list[str] = []
        self._streams = False
        self._has_arguments = False
        self.name = ""

    @property
    def begun(self) -> bool:
        """Whether name and arguments, or their beginning, are there."""
        return bool(self.name) and self._has_arguments

    def take(self) -> str:
        """Return what of the arguments is new."""
        fresh = "".join(self._fresh)
        self._fresh.clear()
        return fresh

    def feed(self, character: str) -> bool:
        """Take a character and return whether the object ends with it. Raises Broken where it cannot be a call."""
        text, space = self._text, character in SPACE
        if not text.stack and not space and character != "{":
            raise Broken
        top, in_word = len(text.stack) == 1, text.in_word
        if top and text.state == VALUE and not space:
            self._begin_value(json.loads(text.key), character)
        told = text.feed(character)
        if self._key is not None:
            if top and in_word and not text.in_word:
                self._end_value()
            else:
                (self._fresh if self._streams else self._value).append(told)
                if len(text.stack) == 1 and text.state == COMMA:
                    self._end_value()
        if text.state != DONE:
            return False
        if not self.name:
            raise Broken
        if not self._has_arguments:
            self._set_arguments("{}")
        return True

    def _begin_value(self, key: str, character: str) -> None:
        self._key, self._streams = key, key in self._keys and character == "{"
        self._value = []
        if self._streams:
            self._set_arguments("")

    def _end_value(self) -> None:
        key, self._key = self._key, None
        if key == "name":
            name = json.loads("".join(self._value))
            if self.name or not isinstance(name, str) or not _is_text(name) or not self._accept(name):
                raise Broken
            self.name = name
        elif key in self._keys and not self._streams:
            self._set_arguments(_unpacked("".join(self._value)))

    def _set_arguments(self, text: str) -> None:
        if self._has_arguments:
            raise Broken
        self._has_arguments = True
        self._fresh.append(text)


def _is_text(name: str) -> bool:
    """Whether there is something, without halves of surrogate pairs."""
    return bool(name) and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _unpacked(value: str) -> str:
    """Return the object that a text of JSON holds, as text."""
    inner = json.loads(value)
    if inner is None:
        return "{}"
    try:
        if isinstance(inner, str) and isinstance(json.loads(inner), dict):
            return inner.strip()
    except (ValueError, RecursionError):
        pass
    raise Broken


def read_call(
    machine: Machine, character: str, keys: Sequence[str], accept: Callable[[str], bool]
) -> Steps[tuple[bool, str, str]]:
    """Read a call and give it out. Return whether it was one, what was read and not given out, and the next character.

    A call that breaks off after it was given out stays as it is; what follows is not part of it.
    """
    call, read, begun = CallText(keys, accept), "", False
    while character != END:
        try:
            ends = call.feed(character)
        except Broken:
            break
        if call.begun:
            if not begun:
                begun, read = True, ""
                machine.open_call(call.name)
            machine.argue(call.take())
        else:
            read += character
        character = yield
        if ends:
            break
    return begun, read, character
