"""The container: what is read, and that hostile files are refused quickly."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pegboard.errors import ModelError
from pegboard_gguf.container import open_container, parse

Write = Callable[..., bytes]
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
VALUES = np.arange(6, dtype="<f4")


@pytest.fixture
def small(gguf_bytes: Write) -> bytes:
    pairs = [
        ("general.architecture", STRING, "llama"),
        ("a.number", U32, 7),
        ("a.flag", BOOL, 1),
        ("a.real", F32, 0.5),
        ("a.big", U64, 1 << 40),
        ("a.words", ARRAY, (STRING, ["", "zwei", "\u4e09"])),
        ("a.numbers", ARRAY, (I32, [-1, 2])),
        ("a.nothing", ARRAY, (I32, [])),
    ]
    tensors = [("w", (2, 3), 0, VALUES.tobytes()), ("q", (2, 32), 8, bytes(68))]
    return gguf_bytes(pairs, tensors)


def test_reads_what_was_written(small: bytes) -> None:
    found = parse(small)
    assert found.version == 3
    metadata = found.metadata
    assert metadata.text("general.architecture") == "llama"
    assert (metadata.integer("a.number"), metadata.flag("a.flag"), metadata.number("a.real")) == (7, True, 0.5)
    assert metadata.integer("a.big") == 1 << 40
    words, numbers = metadata.texts("a.words"), metadata.numbers("a.numbers")
    assert words is not None and list(words) == ["", "zwei", "\u4e09"] and words[1:] == ["zwei", "\u4e09"]
    assert numbers is not None and numbers.tolist() == [-1, 2]
    assert len(metadata["a.nothing"]) == 0  # type: ignore[arg-type]
    info = found.tensors["w"]
    assert info.shape == (2, 3) and info.type.name == "F32" and info.nbytes == 24
    assert np.frombuffer(small, "<f4", 6, info.offset).tolist() == VALUES.tolist()
    assert found.tensors["q"].offset % 32 == 0


def test_version_2_and_another_alignment(gguf_bytes: Write) -> None:
    pairs = [("general.alignment", U32, 64)]
    data = gguf_bytes(pairs, [("a", (1,), 0, bytes(4)), ("b", (1,), 0, b"\0\0\x80?")], version=2, alignment=64)
    found = parse(data)
    assert found.version == 2 and found.tensors["b"].offset - found.tensors["a"].offset == 64


def test_a_file_is_mapped(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(small)
    assert open_container(path).tensors.keys() == {"w", "q"}
    with pytest.raises(ModelError, match=r"none\.gguf"):
        open_container(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match="empty"):
        open_container(tmp_path / "empty.gguf")


def header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def string(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str = "w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


HOSTILE: dict[str, tuple[bytes, str]] = {
    "not gguf": (b"PK\x03\x04" + bytes(60), "not a GGUF"),
    "old container": (b"tjgg" + bytes(60), "before GGUF"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (header(0, 0, 1), "version 1"),
    "version 0": (header(0, 0, 0), "version 0"),
    "truncated header": (b"GGUF\x03\0\0\0\x01", "ends at byte"),
    "huge tensor count": (header(1 << 60, 0) + bytes(64), "claims"),
    "huge pair count": (header(0, 1 << 63) + bytes(64), "claims"),
    "huge key": (header(0, 1) + struct.pack("<Q", 1 << 62) + bytes(64), "name"),
    "key beyond the end": (header(0, 1) + struct.pack("<Q", 5000) + bytes(64), "ends at byte"),
    "huge string value": (header(0, 1) + pair("k", STRING, struct.pack("<Q", 1 << 63)) + bytes(64), "ends at byte"),
    "huge string array": (header(0, 1) + pair("k", ARRAY, struct.pack("<IQ", STRING, 1 << 50)) + bytes(64), "claims"),
    "string array past the end": (
        header(0, 1) + pair("k", ARRAY, struct.pack("<IQQ", STRING, 2, (1 << 64) - 1)) + bytes(64),
        "array of 2 strings",
    ),
    "huge number array": (header(0, 1) + pair("k", ARRAY, struct.pack("<IQ", U64, 1 << 61)) + bytes(64), "claims"),
    "nested array": (
        header(0, 1) + pair("k", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U8, 0)) + bytes(64),
        "array of arrays",
    ),
    "unknown value type": (header(0, 1) + pair("k", 99, bytes(8)), "unknown type 99"),
    "unknown element type": (header(0, 1) + pair("k", ARRAY, struct.pack("<IQ", 13, 1)) + bytes(64), "unknown type 13"),
    "key twice": (header(0, 2) + 2 * pair("k", U32, bytes(4)), "twice"),
    "key not UTF-8": (header(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(64), "not UTF-8"),
    "alignment not a power of two": (
        header(0, 1) + pair("general.alignment", U32, struct.pack("<I", 3)),
        "power of two",
    ),
    "alignment zero": (header(0, 1) + pair("general.alignment", U32, bytes(4)), "power of two"),
    "alignment a string": (header(0, 1) + pair("general.alignment", STRING, string("x")), "expected an integer"),
    "no dimensions": (header(1, 0) + entry(dims=()) + bytes(64), "0 dimensions"),
    "too many dimensions": (header(1, 0) + entry(dims=(1,) * 5) + bytes(64), "5 dimensions"),
    "zero dimension": (header(1, 0) + entry(dims=(0, 4)) + bytes(64), "empty"),
    "huge dimension": (header(1, 0) + entry(dims=((1 << 63) // 32 * 32,) * 4) + bytes(64), "needs bytes"),
    "unknown tensor type": (header(1, 0) + entry(kind=77) + bytes(256), "type 77"),
    "intermediate type": (header(1, 0) + entry(kind=9) + bytes(256), "type 9"),
    "uneven blocks": (header(1, 0) + entry(dims=(33,), kind=8) + bytes(256), "not a multiple"),
    "offset beyond the end": (header(1, 0) + entry(offset=1 << 40) + bytes(256), "needs bytes"),
    "offset not aligned": (header(1, 0) + entry(offset=4) + bytes(512), "multiple of 32"),
    "data truncated": (header(1, 0) + entry() + bytes(64), "needs bytes"),
    "tensor twice": (header(2, 0) + entry() + entry(offset=128) + bytes(512), "twice"),
    "overlap": (header(2, 0) + entry("a") + entry("b", offset=96) + bytes(512), "a and b overlap"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_name(case: str) -> None:
    data, message = HOSTILE[case]
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message):
            parse(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_string_budget_bounds_the_work() -> None:
    count = (1 << 23) + 1
    data = header(0, 1) + pair("k", ARRAY, struct.pack("<IQ", STRING, count)) + bytes(8 * count)
    with pytest.raises(ModelError, match="claims"):
        parse(data)


def test_wrong_metadata_types_are_named(small: bytes) -> None:
    metadata = parse(small).metadata
    calls: list[tuple[Callable[[str], Any], str, str]] = [
        (metadata.integer, "general.architecture", "an integer"),
        (metadata.integer, "a.flag", "an integer"),
        (metadata.number, "a.words", "a finite number"),
        (metadata.flag, "a.number", "a truth value"),
        (metadata.text, "a.numbers", "a string"),
        (metadata.texts, "a.numbers", "an array of strings"),
        (metadata.numbers, "a.words", "an array of numbers"),
    ]
    for get, key, expected in calls:
        with pytest.raises(ModelError, match=f"{key}.*{expected}"):
            get(key)
        assert get("absent") is None
    with pytest.raises(ModelError, match="lacks the metadata key absent"):
        metadata.need("absent")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read(small: bytes, data: st.DataObject) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(small) - 1))
        piece = data.draw(
            st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\x80"]))
        )
        damaged[at : at + len(piece)] = piece
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    try:
        found = parse(bytes(damaged[:cut]))
        for value in found.metadata.values():
            list(value) if hasattr(value, "__len__") else value
    except ModelError:
        return
    assert all(info.offset + info.nbytes <= len(damaged) for info in found.tensors.values())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_behind_the_magic_are_refused_or_read(tail: bytes) -> None:
    try:
        parse(b"GGUF\x03\0\0\0" + tail)
    except ModelError:
        pass
