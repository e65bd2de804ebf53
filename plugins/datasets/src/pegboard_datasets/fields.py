"""Taking typed fields out of a row, with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.errors import DataError, nearest


def field(row: Mapping[str, Any], name: str, option: str) -> Any:
    """Return the value of field `name`. Raises DataError naming it and the `option` that names the field."""
    if name not in row:
        have = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"no field {name!r}{nearest(name, map(str, row))}; the row has: {have}",
            fix=f"correct the row or set {option}",
        )
    return row[name]


def text_field(row: Mapping[str, Any], name: str, option: str) -> str:
    """Return the text in field `name`. Raises DataError naming the field and what was found."""
    value = field(row, name, option)
    if not isinstance(value, str):
        raise wrong(name, "text", value, option)
    return value


def number_field(row: Mapping[str, Any], name: str, option: str) -> float:
    """Return the number in field `name`, which may be written as text. Raises DataError naming the field and what was found."""
    value = field(row, name, option)
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise wrong(name, "a number", value, option)


def truth_field(row: Mapping[str, Any], name: str, option: str) -> bool:
    """Return the label in field `name`: true or false, 1 or 0, also as text. Raises DataError naming the field."""
    value = field(row, name, option)
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    found = known.get(str(value).strip().lower())
    if found is None:
        raise wrong(name, "true or false", value, option)
    return found


def chosen_columns(row: Mapping[str, Any], names: Sequence[str], option: str) -> dict[str, Any]:
    """Return the fields `names` as they are. Raises DataError naming one that is missing."""
    return {name: field(row, name, option) for name in names}


def kind(value: object) -> str:
    """Return what a value is called in an error."""
    return "null" if value is None else type(value).__name__


def wrong(name: str, expected: str, value: object, option: str) -> DataError:
    """Return the error of a field that holds something else."""
    shown = f" {value!r}" if isinstance(value, str | int | float) and len(repr(value)) <= 40 else ""
    return DataError(
        f"field {name!r} must be {expected}, found {kind(value)}{shown}",
        fix=f"correct the row or set {option}",
    )
