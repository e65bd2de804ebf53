"""The header parser against sound files, damaged ones and whatever hypothesis makes of them."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from pegboard.errors import ModelError
from pegboard.weights import check_safetensors
from pegboard.weights.header import MAX_HEADER, METADATA_KEY


def encode(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_reference_library_writes() -> None:
    tensors = {
        "a": torch.zeros(3, 4),
        "b": torch.zeros((), dtype=torch.bfloat16),
        "c": torch.zeros(0, 5, dtype=torch.int64),
    }
    data = save(tensors, {"format": "pt", "note": "é"})
    header = check_safetensors(data)
    assert header.metadata == {"format": "pt", "note": "é"}
    assert {name: e.shape for name, e in header.entries.items()} == {"a": (3, 4), "b": (), "c": (0, 5)}
    assert max(e.end for e in header.entries.values()) == len(data)


DAMAGED = {
    "nothing": (b"", "too few"),
    "no header": ((100).to_bytes(8, "little"), "announces a header of 100 bytes"),
    "huge header": (b"\xff" * 8 + b"{}", "announces a header"),
    "not an object": (encode([1]), "begins with"),
    "pickle": (b"\x80\x04" + b"\x00" * 40, "announces|begins with"),
    "broken JSON": (encode(b'{"a": '), "not JSON"),
    "not UTF-8": (encode(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (encode(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "many brackets": (encode(b'{"a":[' + b"{}," * 1_100_000 + b"{}]}"), "brackets"),
    "long number": (encode(b'{"a": 1' + b"0" * 10_000 + b"}"), "number"),
    "NaN": (encode(b'{"a": NaN}'), "NaN"),
    "same name twice": (encode(b'{"a": {}, "a": {}}'), "twice"),
    "metadata of numbers": (encode({METADATA_KEY: {"a": 1}}), METADATA_KEY),
    "entry is a list": (encode({"a": []}), "describes the tensor 'a'"),
    "entry lacks a field": (encode({"a": {"dtype": "U8", "shape": []}}), "describes the tensor"),
    "unknown type": (encode({"a": entry(0, 1, dtype="F13")}, b"x"), "'F13'"),
    "type is a list": (encode({"a": {"dtype": [], "shape": [], "data_offsets": [0, 1]}}, b"x"), "stores the tensor"),
    "negative shape": (encode({"a": entry(0, 1, [-1, -1])}, b"x"), "shape"),
    "boolean shape": (encode({"a": entry(0, 1, [True])}, b"x"), "shape"),
    "many dimensions": (encode({"a": entry(0, 1, [1] * 65)}, b"x"), "shape"),
    "huge shape": (encode({"a": entry(0, 1, [1 << 62] * 60)}, b"x"), "takes"),
    "offsets backwards": (encode({"a": entry(1, 0, [1])}, b"x"), "offsets"),
    "three offsets": (encode({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"x"), "offsets"),
    "wrong size": (encode({"a": entry(0, 3, [1], "F32")}, b"xxx"), "3 bytes, but F32"),
    "overlap": (encode({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"), "overlapping tensors: 'a' and 'b'"),
    "gap": (encode({"a": entry(0, 1), "b": entry(2, 3)}, b"xxx"), "belong to no tensor"),
    "truncated": (encode({"a": entry(0, 8)}, b"xxxx"), "truncated: the tensor 'a'"),
    "trailing": (encode({"a": entry(0, 1)}, b"xx"), "after its last tensor"),
}


@pytest.mark.parametrize("data,message", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        check_safetensors(data, where="m.safetensors")
    assert str(caught.value).startswith("m.safetensors") and caught.value.fix
    assert len(str(caught.value)) < 1000


def test_a_huge_header_is_refused_without_reading_it() -> None:
    data = (MAX_HEADER + 1).to_bytes(8, "little") + b"{" * (MAX_HEADER + 1)
    tracemalloc.start()
    with pytest.raises(ModelError, match="at most"):
        check_safetensors(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(data)  # BytesIO may hold the input itself, nothing is made from it


names = st.text(max_size=8)
sizes = st.integers(-2, 9) | st.just(1 << 64)
values = st.recursive(
    st.none() | st.booleans() | sizes | names, lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F32", "BF16", "F13"]) | values, "shape": st.lists(sizes, max_size=3) | values},
    optional={"data_offsets": st.lists(sizes, min_size=2, max_size=2) | values, "more": values},
)


@given(st.dictionaries(names | st.just(METADATA_KEY), entries | values, max_size=4), st.binary(max_size=12))
def test_any_header_is_read_or_refused(header: dict[str, object], data: bytes) -> None:
    _agree(encode(header, data))


SOUND = save(
    {"model.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}, {"format": "pt"}
)


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    _agree(bytes(damaged[:cut]))


def _agree(data: bytes) -> None:
    """What we accept, the reference library accepts with the same shapes; what we refuse, we refuse by a ModelError."""
    try:
        header = check_safetensors(data)
    except ModelError:
        return
    try:
        reference = load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError):
        raise AssertionError(f"accepted what the reference refuses: {data!r}") from None
    assert {name: tuple(t.shape) for name, t in reference.items()} == {
        name: e.shape for name, e in header.entries.items()
    }
