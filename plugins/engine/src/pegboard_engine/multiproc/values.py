"""What can travel between processes: a value becomes JSON and a list of arrays, and comes back as the same types.

A scalar of JSON stands for itself; all else is a list that begins with a tag. Whatever has no tag is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.types import CachePlan, KVLayout, StepPlan, StepResult
from pegboard_engine.sampling.batch import SamplingBatch
from pegboard_engine.sampling.logprobs import Logprobs

_RECORDS: dict[str, type[Any]] = {
    "plan": StepPlan,
    "result": StepResult,
    "cache": CachePlan,
    "layout": KVLayout,
}
_TAGS = {kind: tag for tag, kind in _RECORDS.items()}
_FIELDS = {tag: tuple(f.name for f in fields(kind)) for tag, kind in _RECORDS.items()}
_KINDS = "biuf"
"""Kinds of numpy dtypes that are plain numbers."""


class MessageError(ValueError):
    """What came from the other process is no message, or not one that was expected."""


def pack(value: Any) -> tuple[Any, list[np.ndarray]]:
    """Return (JSON values, arrays), from which `unpack` makes the same. Tensors may be on any device.

    Raises TypeError naming the type that cannot travel.
    """
    arrays: list[np.ndarray] = []
    return _pack(value, arrays), arrays


def unpack(packed: Any, arrays: Sequence[np.ndarray]) -> Any:
    """Return what was packed. Arrays and tensors share the memory of `arrays`. Raises MessageError for anything malformed."""
    try:
        return _unpack(packed, arrays)
    except MessageError:
        raise
    except Exception as error:
        raise MessageError(f"a value cannot be read: {type(error).__name__}: {error}") from error


def is_plain(dtype: np.dtype) -> bool:
    """Whether arrays of a dtype are numbers, side by side."""
    return dtype.kind in _KINDS and not dtype.hasobject


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        if not is_plain(value.dtype):
            raise TypeError(f"an array of {value.dtype} cannot be sent to another process")
        arrays.append(value)
        return ["array", len(arrays) - 1]
    if (tag := _TAGS.get(type(value))) is not None:
        return [tag, *(_pack(getattr(value, name), arrays) for name in _FIELDS[tag])]
    if isinstance(value, (tuple, list)):
        return ["tuple" if isinstance(value, tuple) else "list", *(_pack(item, arrays) for item in value)]
    if isinstance(value, dict):
        pairs = [(_key(key), _pack(item, arrays)) for key, item in value.items()]
        return ["dict", *pairs]
    if isinstance(value, SamplingBatch):
        header, parts = value.pack()
        return ["sampling", header["arrays"], _pack(header["processors"], arrays), *_pack(parts, arrays)[1:]]
    if isinstance(value, Logprobs):
        return ["logprobs", *_pack(value.pack(), arrays)[1:]]
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        flat = value.detach().cpu().contiguous().flatten()
        # Bytes, since numpy has not all of torch's dtypes; nothing of no elements, whose stride may be anything.
        arrays.append(flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8))
        return ["tensor", dtype, list(value.shape), len(arrays) - 1]
    if isinstance(value, np.generic) and is_plain(value.dtype):
        return value.item()
    raise TypeError(f"a {type(value).__qualname__} cannot be sent to another process")


def _key(key: Any) -> str | int:
    if isinstance(key, np.integer):
        return int(key)
    if not isinstance(key, (str, int)) or isinstance(key, bool):
        raise TypeError(f"a mapping with keys of {type(key).__qualname__} cannot be sent to another process")
    return key


def _unpack(packed: Any, arrays: Sequence[np.ndarray]) -> Any:
    if not isinstance(packed, list):
        return packed
    tag, *rest = packed
    if tag == "array":
        return arrays[_index(rest[0])]
    if tag in _RECORDS:
        items = (_unpack(item, arrays) for item in rest)
        return _RECORDS[tag](**dict(zip(_FIELDS[tag], items, strict=True)))
    if tag in ("tuple", "list"):
        made = [_unpack(item, arrays) for item in rest]
        return tuple(made) if tag == "tuple" else made
    if tag == "dict":
        return {key: _unpack(item, arrays) for key, item in rest}
    if tag == "sampling":
        names, processors, *parts = rest
        header = {"arrays": names, "processors": _unpack(processors, arrays)}
        return SamplingBatch.unpack(header, [_unpack(part, arrays) for part in parts])
    if tag == "logprobs":
        return Logprobs.unpack([_unpack(part, arrays) for part in rest])
    if tag == "tensor":
        dtype, shape, index = rest
        flat, kind = arrays[_index(index)], getattr(torch, dtype)
        return torch.from_numpy(flat).view(kind).reshape(shape) if len(flat) else torch.empty(shape, dtype=kind)
    raise MessageError(f"a value has the unknown tag {tag!r}")


def _index(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise MessageError(f"{value!r} is no number of an array")
    return value
