from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.types import CachePlan, KVLayout, StepPlan, StepResult
from pegboard_engine.multiproc.values import MessageError, pack, unpack
from pegboard_engine.sampling.batch import SamplingBatch
from pegboard_engine.sampling.logprobs import Logprobs

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SHAPES = st.lists(st.integers(0, 3), max_size=3)


def array(dtype: str, shape: list[int], content: bytes) -> np.ndarray:
    """An array of these bytes over and over, whatever they mean in its dtype."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    octets = np.resize(np.frombuffer(content, np.uint8), size)
    return octets.view(dtype).reshape(shape) if size else np.empty(shape, dtype)


def arrays(*dtypes: str) -> st.SearchStrategy[np.ndarray]:
    return st.builds(array, st.sampled_from(dtypes), SHAPES, st.binary(min_size=1, max_size=24))


TENSORS = arrays("u1", "i4", "i8", "f4", "f8").map(torch.from_numpy)
HALVES = arrays("i2").map(lambda a: torch.from_numpy(a).view(torch.bfloat16))
VALUES = st.recursive(
    SCALARS | arrays("u1", "i4", "<i8", ">i4", "f2", "f4", "f8") | TENSORS | HALVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
        | inner.map(lambda value: ["array", value])
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, torch.Tensor):
        octets = [x.reshape(-1).view(torch.uint8).tolist() if x.numel() else [] for x in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and octets[0] == octets[1]
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__slots__"):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__slots__)
    return bool(a == b or a != a)


def travelled(value: Any) -> Any:
    body, arrays = pack(value)
    return unpack(json.loads(json.dumps(body)), [array.copy() for array in arrays])


@settings(deadline=None)
@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert same(travelled(value), value)


def test_plans_and_results_come_back_as_they_were() -> None:
    ids = np.arange(5)
    sampling = SamplingBatch(
        ids.astype(np.int32), temperature=np.ones(5, np.float32), masks=np.array([[1, -1]], np.int32)
    )
    sampling.processors = {3: [("bias", {"id": 1, "more": [1.5, None]})]}
    plan = StepPlan(
        7, ids, ids, ids[:2], ids[:2], ids[:2], ids, 1, (ids[:1], ids[:1], ids[:1]), ids[:3], ids[:3], sampling
    )
    plan.extras = {"prompt": (ids, 4), "pool": ids.reshape(1, 5)}
    told = Logprobs(*(ids[:2] for _ in range(9)))
    result = StepResult(7, ids, {"logprobs": told, "errors": {2: "why"}, "prompt": [told], "valid": ids > 2})
    layout = KVLayout(4, 2, 2, 8, "float32", "PHSD", (0, 2))
    for value in (plan, result, CachePlan(layout, 3, 4, 5)):
        assert same(travelled(value), value)


def test_arrays_that_are_views_travel_and_numpy_scalars_become_plain() -> None:
    whole = np.arange(12).reshape(3, 4)
    found = travelled({"column": whole[:, ::2], np.int32(4): np.float32(0.5), "flag": np.bool_(True)})
    assert same(found, {"column": whole[:, ::2].copy(), 4: 0.5, "flag": True})


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "object"), ({1, 2}, "set"), (b"x", "bytes"), (1j, "complex"), (np.array(["a"]), "<U1")],
    ids=["object", "set", "bytes", "complex", "array of texts"],
)
def test_what_has_no_tag_is_refused_by_name(value: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        pack({"inside": [value]})
    with pytest.raises(TypeError, match="keys of float"):
        pack({1.5: 2})


def test_objects_never_travel_in_arrays() -> None:
    for array in (np.array([object()]), np.zeros(2, "M8[s]"), np.zeros(2, "V4")):
        with pytest.raises(TypeError, match="cannot be sent"):
            pack(array)


@pytest.mark.parametrize(
    "body",
    [
        [],
        ["eval", "1"],
        ["array", 1],
        ["array", -1],
        ["array", True],
        ["array", "0"],
        ["plan", 1],
        ["result", 1, 2, 3, 4],
        ["dict", [[1], 2]],
        ["dict", ["a"]],
        ["logprobs", 1],
        ["sampling", ["nothing"], ["list"], ["array", 0]],
        ["tensor", "save", [1], 0],
        ["tensor", "float32", [3], 0],
        [["list"]],
    ],
    ids=str,
)
def test_what_is_malformed_is_told(body: Any) -> None:
    with pytest.raises(MessageError):
        unpack(body, [np.zeros(8, np.uint8)])


@settings(deadline=None)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=5), max_leaves=12))
def test_no_json_does_anything_else(body: Any) -> None:
    try:
        unpack(body, [np.zeros(8, np.uint8)])
    except MessageError:
        pass
