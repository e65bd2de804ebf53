"""The metadata of a container: typed look-ups that name the key, the value and what was expected."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from pegboard.errors import ModelError

_LENGTH = struct.Struct("<Q")

Buffer = bytes | bytearray | memoryview


class StringArray(Sequence[str]):
    """A metadata array of strings, decoded when read: a vocabulary costs 8 bytes an entry until then.

    starts: offset of each string's 8-byte length in `buffer`.
    """

    __slots__ = ("_buffer", "_starts", "_where")

    def __init__(self, buffer: Buffer, starts: array[int], where: str) -> None:
        self._buffer, self._starts, self._where = buffer, starts, where

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._decode(start) for start in self._starts[index]]
        return self._decode(self._starts[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._decode, self._starts)

    def _decode(self, start: int) -> str:
        begin = start + 8
        length: int = _LENGTH.unpack_from(self._buffer, start)[0]
        try:
            return str(self._buffer[begin : begin + length], "utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{self._where} holds a string at byte {begin} that is not UTF-8 ({error.reason})"
            ) from None


Value = bool | int | float | str | np.ndarray | StringArray


class Metadata(Mapping[str, Value]):
    """Key-value pairs of one container. `where` names it in errors."""

    def __init__(self, values: Mapping[str, Value], where: str) -> None:
        self._values, self.where = values, where

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def need(self, key: str) -> int:
        """Return an integer that the model cannot be read without."""
        found = self.integer(key)
        if found is None:
            raise ModelError(
                f"{self.where} lacks the metadata key {key}", fix="the file is incomplete: convert or download it again"
            )
        return found

    def integer(self, key: str) -> int | None:
        """Return an integer, or None when the key is absent."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        return value

    def number(self, key: str) -> float | None:
        """Return a finite integer or float as a float, or None when the key is absent."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def flag(self, key: str) -> bool | None:
        """Return a truth value, or None when the key is absent."""
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, value, "a truth value")

    def text(self, key: str) -> str | None:
        """Return a string, or None when the key is absent."""
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, value, "a string")

    def texts(self, key: str) -> StringArray | None:
        """Return an array of strings, or None when the key is absent."""
        value = self.get(key)
        if value is None or isinstance(value, StringArray):
            return value
        raise self._wrong(key, value, "an array of strings")

    def numbers(self, key: str) -> np.ndarray | None:
        """Return an array of numbers, or None when the key is absent."""
        value = self.get(key)
        if value is None or isinstance(value, np.ndarray):
            return value
        raise self._wrong(key, value, "an array of numbers")

    def _wrong(self, key: str, value: Value, expected: str) -> ModelError:
        if isinstance(value, (StringArray, np.ndarray)):
            shown = f"an array of {len(value)} {'strings' if isinstance(value, StringArray) else value.dtype.name}"
        else:
            shown = f"{type(value).__name__} {str(value)[:60]!r}"
        return ModelError(f"{self.where}: the metadata key {key} is {shown}; expected {expected}")
