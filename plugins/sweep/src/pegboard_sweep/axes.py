"""`key=a,b,c` and `key=log(1e-5,1e-2)`: what a sweep varies."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pegboard.errors import ConfigError
from pegboard.interfaces.search import Axis

RANGES = {"uniform": (False, False), "log": (True, False), "int": (False, True), "logint": (True, True)}
"""Name of a range -> whether it is even over logarithms, whether its numbers are whole."""

_RANGE = re.compile(r"([a-z]+)\(([^()]*)\)")
_OPEN, _CLOSE, _QUOTES = "[{(", "]})", "\"'"


def parse_axes(overrides: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """Divide overrides into what is varied and what every run has. Raises ConfigError for a wrong range or a key twice."""
    axes: list[Axis] = []
    fixed = []
    for override in overrides:
        key, equals, text = override.partition("=")
        axis = None if override.startswith("~") or not equals else _axis(key, text, override)
        if axis is None:
            fixed.append(override)
        elif any(axis.key == other.key for other in axes):
            raise ConfigError(f"{axis.key} is varied twice", fix="write all its values in one place: key=a,b,c")
        else:
            axes.append(axis)
    return axes, fixed


def split_values(text: str) -> list[str]:
    """Return what commas divide, those inside brackets and quotes left alone: "1,[2,3]" is "1" and "[2,3]"."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPEN or character in _CLOSE:
            depth += 1 if character in _OPEN else -1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _axis(key: str, text: str, override: str) -> Axis | None:
    """Return what varies, None where there is a single value."""
    found = _RANGE.fullmatch(text.strip())
    if found and found[1] in RANGES:
        return _range(key, found[1], found[2], override)
    values = split_values(text)
    if len(values) == 1:
        return None
    doubled = {value for value in values if values.count(value) > 1}
    if "" in values or doubled:
        wrong = f"{sorted(doubled)[0]!r} stands there twice" if doubled - {""} else "a value is empty"
        raise ConfigError(f"{override!r}: {wrong}", fix='write key=a,b,c; an empty text is ""')
    return Axis(key, tuple(values))


def _range(key: str, name: str, bounds: str, override: str) -> Axis:
    log, integer = RANGES[name]
    try:
        low, high = (float(bound) for bound in bounds.split(","))
    except ValueError:
        raise ConfigError(f"{override!r} is no range", fix=f"write two numbers: {key}={name}(LOW,HIGH)") from None
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{override!r} has no numbers in it", fix="the first number must be below the second one")
    if log and low <= 0:
        raise ConfigError(f"{override!r}: there is no logarithm of {low:g}", fix="begin above 0")
    if integer and (low != int(low) or high != int(high)):
        raise ConfigError(f"{override!r}: these are no whole numbers", fix=f"write {key}={name}(2,64), say")
    return Axis(key, (), low, high, log, integer)
