"""The GGUF container: magic, version, key-value pairs, tensor table, data. Reads versions 2 and 3, little-endian.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all integers little-endian:
    "GGUF", u32 version, u64 tensors, u64 pairs
    pair:   string key, u32 type, value; a string is u64 length + UTF-8; an array is u32 type, u64 count, values
    tensor: string name, u32 dimensions, u64 each (fastest first), u32 type, u64 offset from the start of the data
    padding to `general.alignment` (32 unless said), then the data of each tensor at a multiple of it

Nothing is believed: each count is checked against the bytes that are left before anything is made from it, so that
time and memory are bounded by the size of the file and by the limits below.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pegboard.errors import ModelError
from pegboard_gguf.blocks import BLOCK_TYPES, BlockType
from pegboard_gguf.metadata import Buffer, Metadata, StringArray, Value

MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_STRINGS = 1 << 23
"""Strings in all arrays of a file together; the largest vocabularies with their merges have fewer than 2^20."""
MAX_DIMENSIONS = 4
MAX_NAME = 1 << 16
MAX_ALIGNMENT = 1 << 24
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: ("<B", "u1"),
    1: ("<b", "i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<B", "u1"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_OLD_MAGICS = {b"lmgg", b"tjgg", b"fmgg", b"algg"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is. shape: slowest dimension first, as torch has it; offset: from the start of the file, in
    bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Container:
    """A parsed file. buffer: the whole of it, usually a memory map; data_start: offset of the data section."""

    version: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    buffer: memoryview
    data_start: int
    where: str


def open_container(path: Path) -> Container:
    """Map `path` into memory and parse it. Raises ModelError when it cannot be read or is damaged."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ModelError(f"{path} is empty", fix="download it again")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse(mapped, where=str(path))


def parse(buffer: Buffer | mmap.mmap, *, where: str = "the GGUF data") -> Container:
    """Parse a container held in `buffer`. Raises ModelError for anything that is not a sound file; reads no tensor."""
    view = memoryview(buffer)
    cursor = _Cursor(view, where)
    version = _check_magic(cursor)
    tensor_count, pair_count = cursor.u64(), cursor.u64()
    # The shortest tensor entry has a one-letter name and one dimension, the shortest pair a one-letter key and one
    # byte.
    cursor.check_count(tensor_count, 33, MAX_TENSORS, "tensors")
    cursor.check_count(pair_count, 14, MAX_PAIRS, "metadata pairs")
    metadata = _read_pairs(cursor, pair_count)
    alignment = metadata.integer("general.alignment")
    alignment = DEFAULT_ALIGNMENT if alignment is None else alignment
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment}; expected a power of two up to {MAX_ALIGNMENT}")
    entries = [_read_tensor_entry(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors = _place_tensors(cursor, entries, data_start, alignment)
    return Container(version, metadata, tensors, view, data_start, where)


class _Cursor:
    """A position in the buffer that never passes its end."""

    def __init__(self, view: memoryview, where: str) -> None:
        self.view, self.where, self.end = view, where, len(view)
        self.position = 0
        self.strings_left = MAX_STRINGS

    def damaged(self, what: str) -> ModelError:
        return ModelError(
            f"{self.where}: {what}", fix="the file is damaged or not a model: download or convert it again"
        )

    def take(self, count: int) -> int:
        """Move on by `count` bytes and return the position before."""
        start = self.position
        if count > self.end - start:
            raise self.damaged(f"ends at byte {self.end}, in the middle of {count} bytes that begin at {start}")
        self.position = start + count
        return start

    def u32(self) -> int:
        start = self.take(4)
        value: int = _U32.unpack_from(self.view, start)[0]
        return value

    def u64(self) -> int:
        start = self.take(8)
        value: int = _U64.unpack_from(self.view, start)[0]
        return value

    def string(self, limit: int | None = None) -> str:
        length = self.u64()
        if limit is not None and length > limit:
            raise self.damaged(f"a name at byte {self.position - 8} has {length} bytes; at most {limit} are allowed")
        start = self.take(length)
        try:
            return str(self.view[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"the string at byte {start} is not UTF-8 ({error.reason})") from None

    def check_count(self, count: int, smallest: int, limit: int, what: str) -> None:
        """Refuse a count of entries that the remaining bytes cannot hold."""
        if count > limit or count * smallest > self.end - self.position:
            raise self.damaged(
                f"claims {count} {what}, more than {self.end - self.position} remaining bytes "
                f"(or the limit of {limit}) allow"
            )

    def strings(self, count: int) -> StringArray:
        """Step over `count` strings, keeping where each begins."""
        self.check_count(count, 8, self.strings_left, "strings in an array")
        self.strings_left -= count
        position, view, unpack = self.position, self.view, _U64.unpack_from
        starts = array("Q", bytes(8 * count))
        try:
            for index in range(count):
                starts[index] = position
                position += 8 + unpack(view, position)[0]
        except (struct.error, OverflowError, IndexError):
            position = self.end + 1
        if position > self.end:
            raise self.damaged(
                f"ends at byte {self.end}, inside an array of {count} strings that begins at {self.position}"
            )
        self.position = position
        return StringArray(view, starts, self.where)

    def value(self, key: str) -> Value:
        kind = self.u32()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        return self._scalar(key, kind)

    def _scalar(self, key: str, kind: int) -> Value:
        if kind not in _SCALARS:
            raise self.damaged(f"the metadata key {key} has the unknown type {kind}")
        code, _ = _SCALARS[kind]
        value: int | float = struct.unpack_from(code, self.view, self.take(struct.calcsize(code)))[0]
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> Value:
        kind, count = self.u32(), self.u64()
        if kind == _STRING:
            return self.strings(count)
        if kind == _ARRAY:
            raise self.damaged(f"the metadata key {key} is an array of arrays, which no known model has")
        if kind not in _SCALARS:
            raise self.damaged(f"the metadata key {key} is an array of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind][1])
        self.check_count(count, dtype.itemsize, self.end, f"values in {key}")
        return (
            np.frombuffer(self.view, dtype, count, self.take(count * dtype.itemsize)) if count else np.empty(0, dtype)
        )


def _check_magic(cursor: _Cursor) -> int:
    """Return the version, or say what the file is instead."""
    magic = bytes(cursor.view[:4])
    if magic in _OLD_MAGICS:
        raise ModelError(
            f"{cursor.where} is a model file from before GGUF (magic {magic[::-1].decode()!r})",
            fix="convert it to GGUF first",
        )
    if magic != b"GGUF":
        raise ModelError(f"{cursor.where} is not a GGUF file: it begins with {magic!r}", fix="name a .gguf file")
    cursor.take(4)
    version = cursor.u32()
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        raise ModelError(
            f"{cursor.where} is a big-endian GGUF file",
            fix="only little-endian files are read: convert it again for this machine",
        )
    raise ModelError(
        f"{cursor.where} is GGUF version {version}; versions 2 and 3 are read",
        fix="convert it again with a newer converter",
    )


def _read_pairs(cursor: _Cursor, count: int) -> Metadata:
    values: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string(MAX_NAME)
        if key in values:
            raise cursor.damaged(f"the metadata key {key} occurs twice")
        values[key] = cursor.value(key)
    return Metadata(values, cursor.where)


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], BlockType, int]:
    """Return name, shape (slowest dimension first), type and offset from the start of the data."""
    name = cursor.string(MAX_NAME)
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.damaged(f"the tensor {name} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise cursor.damaged(f"the tensor {name} has the shape {shape}, which is empty")
    number = cursor.u32()
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        raise ModelError(
            f"{cursor.where}: the tensor {name} is stored as type {number}, which is unknown",
            fix="known: " + ", ".join(t.name for t in BLOCK_TYPES.values()),
        )
    if shape[-1] % kind.block_size:
        raise cursor.damaged(
            f"rows of the tensor {name} have {shape[-1]} values, "
            f"not a multiple of {kind.name}'s block of {kind.block_size}"
        )
    return name, shape, kind, cursor.u64()


def _place_tensors(
    cursor: _Cursor, entries: list[tuple[str, tuple[int, ...], BlockType, int]], data_start: int, alignment: int
) -> dict[str, TensorInfo]:
    """Check that each tensor lies inside the data, aligned, alone, and under a name of its own."""
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise cursor.damaged(f"the tensor {name} occurs twice")
        values = 1
        for size in shape:
            values *= size
        nbytes = values // kind.block_size * kind.block_bytes
        if offset % alignment:
            raise cursor.damaged(f"the tensor {name} begins at {offset}, not at a multiple of {alignment}")
        if data_start + offset + nbytes > cursor.end:
            raise cursor.damaged(
                f"the tensor {name} needs bytes {data_start + offset} to {data_start + offset + nbytes}, "
                f"but the file ends at {cursor.end}"
            )
        tensors[name] = TensorInfo(name, shape, kind, data_start + offset, nbytes)
    previous: TensorInfo | None = None
    for info in sorted(tensors.values(), key=lambda t: t.offset):
        if previous is not None and info.offset < previous.offset + previous.nbytes:
            raise cursor.damaged(f"the tensors {previous.name} and {info.name} overlap")
        previous = info
    return tensors
