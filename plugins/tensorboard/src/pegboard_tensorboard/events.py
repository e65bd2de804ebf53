"""TensorBoard's events, in the wire format of protocol buffers.

Field numbers are those of tensorboard/compat/proto: event.proto, summary.proto, tensor.proto. A message is its fields one after
another, each a key (number · 8 + wire type) and a value, so that the few that are needed here are written without a generated class.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

VERSION = "brain.Event:2"
"""What the first event of a file says; readers honour START marks from version 2 on."""

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
_STRING_TENSOR = 7
_START = 1


def version_event(time: float) -> bytes:
    """Return the first event of a file."""
    return _time(time) + _text(3, VERSION)


def start_event(time: float, step: int) -> bytes:
    """Return the mark by which readers forget the events of earlier files from `step` on."""
    return _time(time) + _integer(2, step) + _bytes(7, _integer(1, _START))


def scalars_event(time: float, step: int, values: Mapping[str, float]) -> bytes:
    """Return the scalars of one step, rounded to float32; beyond its range they are infinite."""
    summary = b"".join(_bytes(1, _text(1, tag) + _float(2, value)) for tag, value in values.items())
    return _time(time) + _integer(2, step) + _bytes(5, summary)


def text_event(time: float, step: int, tag: str, text: str) -> bytes:
    """Return a text (Markdown) for the page of texts."""
    metadata = _bytes(1, _text(1, "text"))
    tensor = _integer(1, _STRING_TENSOR) + _bytes(2, _bytes(2, _integer(1, 1))) + _text(8, text)
    value = _text(1, tag) + _bytes(9, metadata) + _bytes(8, tensor)
    return _time(time) + _integer(2, step) + _bytes(5, _bytes(1, value))


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _float(number: int, value: float) -> bytes:
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _key(number, _FLOAT) + packed


def _time(value: float) -> bytes:
    return _key(1, _DOUBLE) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode("utf-8", "replace"))
