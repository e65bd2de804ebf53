"""The header of a safetensors file, parsed as if its author meant harm. Standard library only.

Layout (https://huggingface.co/docs/safetensors): u64 little-endian n, n bytes of JSON, then the data. The JSON maps
each name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the start of the data, and
`__metadata__` to texts. The tensors cover the data without a gap or an overlap.

Nothing is believed: sizes are compared with the file before memory is taken, so that memory is a small multiple of
the header, which is at most `MAX_HEADER` bytes, and no tensor is read.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from pegboard.errors import ModelError

MAX_HEADER = 32 << 20
"""Bytes of JSON; an entry takes about 130, so that this holds the tensors of the largest models several times over."""
MAX_BRACKETS = 1 << 20
"""Opening brackets and braces in a header: bounds the objects that the JSON parser makes. A tensor has three."""
MAX_DIMENSIONS = 64
"""What torch allows."""

METADATA_KEY = "__metadata__"
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of one value by the format's name of its type."""

_DAMAGED = "the file is damaged or not a safetensors file: download or write it again"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is. begin, end: bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A sound header. entries: by name, in the order of the data."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def check_safetensors(data: bytes, where: str = "the safetensors data") -> Header:
    """Parse a whole file held in memory. Returns its header or raises ModelError, and nothing else, whatever the
    bytes are.
    """
    return read_header(io.BytesIO(data), len(data), where)


def read_header(file: BinaryIO, size: int, where: str) -> Header:
    """Parse the header of an open file of `size` bytes, read from its start. Raises ModelError naming `where`."""
    start = file.read(8)
    if len(start) < 8:
        _damaged(where, f"has {len(start)} bytes, too few for a safetensors file")
    length = int.from_bytes(start, "little")
    if length > size - 8:
        _damaged(where, f"announces a header of {length} bytes, but only {size - 8} follow")
    if length > MAX_HEADER:
        _damaged(where, f"announces a header of {length} bytes; at most {MAX_HEADER} are read")
    text = file.read(length)
    if len(text) < length:
        _damaged(where, f"ends inside its header, after {8 + len(text)} bytes")
    content = _parse_json(text, where)
    metadata = _check_metadata(content.pop(METADATA_KEY, None), where)
    entries = [_check_entry(name, value, 8 + length, where) for name, value in content.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_cover(entries, 8 + length, size, where)
    return Header({entry.name: entry for entry in entries}, metadata)


def _damaged(where: str, what: str) -> NoReturn:
    raise ModelError(f"{where} {what}", fix=_DAMAGED)


class _Refused(ValueError):
    """Raised by the JSON hooks."""


def _parse_json(text: bytes, where: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _damaged(where, f"has a header that begins with {text[:8]!r} instead of a JSON object")
    if text.count(b"{") + text.count(b"[") > MAX_BRACKETS:
        _damaged(where, f"has a header with more than {MAX_BRACKETS} brackets")
    try:
        content: dict[str, Any] = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        _damaged(where, f"has a header that is not UTF-8 ({error.reason} at byte {8 + error.start})")
    except json.JSONDecodeError as error:
        _damaged(where, f"has a header that is not JSON ({error.msg} at character {error.pos})")
    except RecursionError:
        _damaged(where, "has a header that is nested too deeply")
    except ValueError as error:  # of the hooks, or a number with thousands of digits
        _damaged(
            where,
            f"has a header that cannot be used: {error if isinstance(error, _Refused) else 'a number is too long'}",
        )
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"the name {_short(twice)} occurs twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise _Refused(f"{text} is no JSON value")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_metadata(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _damaged(where, f"has a {METADATA_KEY} that does not map names to texts")
    return value


def _check_entry(name: str, value: object, data_start: int, where: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(
            where, f"describes the tensor {_short(name)} as {_short(value)}; expected dtype, shape and data_offsets"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelError(
            f"{where} stores the tensor {_short(name)} as {_short(dtype)}, which is not read",
            fix="known: " + ", ".join(ITEM_BYTES),
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        _damaged(where, f"gives the tensor {_short(name)} the shape {_short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _damaged(where, f"gives the tensor {_short(name)} the offsets {_short(offsets)}; expected [begin, end]")
    count = ITEM_BYTES[dtype]
    for length in shape:
        count *= length
    if count != offsets[1] - offsets[0]:
        _damaged(
            where,
            f"gives the tensor {_short(name)} {offsets[1] - offsets[0]} bytes, but {dtype} of shape {_short(shape)} takes {_short(count)}",
        )
    return Entry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_cover(entries: list[Entry], data_start: int, size: int, where: str) -> None:
    """Check that the tensors, sorted, fill the bytes from `data_start` to `size`."""
    end, previous = data_start, "the header"
    for entry in entries:
        if entry.begin < end:
            _damaged(where, f"has overlapping tensors: {_short(previous)} and {_short(entry.name)}")
        if entry.begin > end:
            _damaged(
                where,
                f"has {entry.begin - end} bytes between {_short(previous)} and {_short(entry.name)} that belong to no tensor",
            )
        if entry.end > size:
            _damaged(
                where, f"is truncated: the tensor {_short(entry.name)} ends at byte {entry.end}, the file at {size}"
            )
        end, previous = entry.end, entry.name
    if end != size:
        _damaged(where, f"has {size - end} bytes after its last tensor")
