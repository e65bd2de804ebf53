"""Files written from known fields, so that a mutation can hit a count or an offset as well as any byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

INTERESTING = (0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
HUGE = (2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 32)


@dataclass(slots=True)
class Sample:
    """A valid file. fields: (offset, bytes) of every little-endian integer in it."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int]] = field(default_factory=list)

    def integer(self, value: int, size: int) -> None:
        """Append an integer of `size` bytes."""
        self.fields.append((len(self.data), size))
        self.data += value.to_bytes(size, "little", signed=value < 0)

    def text(self, value: str) -> None:
        """Append a text after its length, eight bytes."""
        encoded = value.encode()
        self.integer(len(encoded), 8)
        self.data += encoded

    def real(self, value: float) -> None:
        """Append a float32."""
        self.data += struct.pack("<f", value)

    def pad(self, alignment: int) -> None:
        """Append zeros up to a multiple of `alignment`."""
        self.data += bytes(-len(self.data) % alignment)


def mutated(sample: Sample, source: random.Random) -> bytes:
    """Return the file with one to four things wrong with it."""
    data = bytearray(sample.data)
    for _ in range(source.choice((1, 1, 1, 2, 2, 4))):
        source.choice(MUTATIONS)(data, sample.fields, source)
    return bytes(data)


def _set_field(data: bytearray, fields: Sequence[tuple[int, int]], source: random.Random) -> None:
    offset, size = source.choice(fields)
    if offset + size > len(data):
        return
    old = int.from_bytes(data[offset : offset + size], "little")
    near = (old + 1, old - 1, old * 2, old // 2, old ^ (1 << source.randrange(size * 8)), len(data), len(data) - offset)
    new = source.choice((*near, *INTERESTING, *HUGE)) % (1 << (8 * size))
    data[offset : offset + size] = new.to_bytes(size, "little")


def _flip_bits(data: bytearray, fields: Sequence[tuple[int, int]], source: random.Random) -> None:
    for _ in range(source.choice((1, 1, 2, 8))):
        if data:
            data[min(_place(data, source), len(data) - 1)] ^= 1 << source.randrange(8)


def _set_bytes(data: bytearray, fields: Sequence[tuple[int, int]], source: random.Random) -> None:
    start = _place(data, source)
    stop = min(len(data), start + source.choice((1, 2, 4, 8, 64)))
    data[start:stop] = bytes([source.choice((0, 255, 1, 0x80, 0x22, 0x7B))]) * (stop - start)


def _cut(data: bytearray, fields: Sequence[tuple[int, int]], source: random.Random) -> None:
    del data[_place(data, source) :]


def _remove(data: bytearray, fields: Sequence[tuple[int, int]], source: random.Random) -> None:
    start = _place(data, source)
    del data[start : start + source.choice((1, 4, 8, 100))]


def _repeat(data: bytearray, fields: Sequence[tuple[int, int]], source: random.Random) -> None:
    start, target = _place(data, source), _place(data, source)
    data[target:target] = data[start : start + source.choice((1, 8, 32, 200))]


def _place(data: bytearray, source: random.Random) -> int:
    """An offset; every other one among the first 512 bytes, where the structure is."""
    return source.randrange(min(512, len(data) + 1) if source.random() < 0.5 else len(data) + 1) if data else 0


Mutation = Callable[[bytearray, Sequence[tuple[int, int]], random.Random], None]
MUTATIONS: tuple[Mutation, ...] = (_set_field, _set_field, _set_field, _flip_bits, _set_bytes, _cut, _remove, _repeat)
