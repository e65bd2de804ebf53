"""The files of bitsandbytes: a weight `X.weight` of packed codes, and beside it

X.weight.absmax                             scales, uint8 codes where they are quantised themselves, else float32
X.weight.nested_absmax                      float32, the scales of the scales
X.weight.quant_map, X.weight.nested_quant_map   the tables, float32
X.weight.quant_state.bitsandbytes__nf4      JSON as bytes: shape, dtype, block sizes, the offset of the scales
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.blockwise import block_count, dynamic_table
from pegboard.errors import ModelError
from pegboard_nf4.matrix import BLOCK, NESTED_BLOCK, Nf4Matrix, nf4_table

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor

STATE = "quant_state.bitsandbytes__"
_MOST_BYTES = 1 << 16
_DTYPES = ("float32", "bfloat16", "float16")
_FIX = "quantise the model again, as nf4 with blocks of 64 weights"


class StoredWeight:
    """A weight in several tensors; as a lazy tensor it is the dequantised weight. parts: by what follows `X.weight.`, the codes as ""."""

    def __init__(self, name: str, parts: Mapping[str, LazyTensor]) -> None:
        self.name, self.parts = name, parts
        state_name = next(part for part in parts if part.startswith(STATE))
        if parts[state_name].dtype != torch.uint8 or prod(parts[state_name].shape) > _MOST_BYTES:
            raise ModelError(f"{name}.{state_name} is no JSON text of at most {_MOST_BYTES} bytes", fix=_FIX)
        state = read_state(name, parts[state_name].load())
        self.shape = tuple(state["shape"])
        self.dtype: torch.dtype = getattr(torch, state["dtype"])
        _check(name, state, {part: (tuple(lazy.shape), lazy.dtype) for part, lazy in parts.items()})

    def load(self) -> Tensor:
        """Return the dequantised weight [N, K]."""
        return self._matrix().dequantise(self.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start … stop - 1 of it."""
        return self.load()[start:stop]

    def _matrix(self) -> Nf4Matrix:
        return matrix_of(self.name, {part: lazy.load() for part, lazy in self.parts.items()})


def quantised_names(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that are quantised."""
    return [name.partition(f".{STATE}")[0] for name in tensors if f".{STATE}" in name]


def join(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors with one StoredWeight in the place of each quantised weight. Raises ModelError naming what does not fit."""
    names = set(quantised_names(tensors))
    parts: dict[str, dict[str, LazyTensor]] = {name: {} for name in names}
    joined: dict[str, LazyTensor] = {}
    for key, lazy in tensors.items():
        owner, _, part = key.partition(".weight.")
        owner = f"{owner}.weight" if part else key
        if owner in names:
            parts[owner][part] = lazy
        else:
            joined[key] = lazy
    for name in sorted(names):
        if "" not in parts[name]:
            raise ModelError(f"{name} is missing, though tensors that belong to it are there", fix=_FIX)
        joined[name] = StoredWeight(name, parts[name])
    return joined


def read_state(name: str, tensor: Tensor) -> dict[str, Any]:
    """Return the settings of one weight. Raises ModelError naming the one that is damaged or not supported."""
    try:
        state = json.loads(bytes(tensor.tolist()).decode())
    except (ValueError, RecursionError):
        raise ModelError(f"the quant_state of {name} is not JSON", fix=_FIX) from None
    shape = state.get("shape") if isinstance(state, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(isinstance(size, int) and 0 < size < 1 << 31 for size in shape)
    ):
        raise ModelError(f"the quant_state of {name} holds no shape of a matrix", fix=_FIX)
    wanted = {"quant_type": ("nf4",), "blocksize": (BLOCK,), "dtype": _DTYPES}
    if "nested_blocksize" in state:
        wanted |= {"nested_blocksize": (NESTED_BLOCK,), "nested_dtype": ("float32",)}
        if not isinstance(state.get("nested_offset"), float | int):
            raise ModelError(f"the quant_state of {name} holds no nested_offset", fix=_FIX)
    for key, allowed in wanted.items():
        if state.get(key) not in allowed:
            raise ModelError(
                f"the quant_state of {name} says {key}={state.get(key)!r}; read is {' or '.join(map(repr, allowed))}",
                fix=_FIX,
            )
    return state


def matrix_of(name: str, parts: Mapping[str, Tensor]) -> Nf4Matrix:
    """Return the weight that loaded parts stand for. Raises ModelError where they do not fit together or use other tables."""
    state = read_state(name, next(tensor for part, tensor in parts.items() if part.startswith(STATE)))
    _check(name, state, {part: (tuple(tensor.shape), tensor.dtype) for part, tensor in parts.items()})
    for part, values in (("quant_map", nf4_table().values), ("nested_quant_map", dynamic_table(signed=True).values)):
        if part in parts and not torch.allclose(parts[part].cpu(), values, rtol=0, atol=1e-6):
            raise ModelError(f"{name}.{part} is another table than that of the format", fix=_FIX)
    shape = (state["shape"][0], state["shape"][1])
    packed = parts[""].reshape(-1)
    if "nested_blocksize" not in state:
        return Nf4Matrix(shape, packed, parts["absmax"])
    offset = torch.tensor(float(state["nested_offset"]), dtype=torch.float32)
    return Nf4Matrix(shape, packed, parts["absmax"], parts["nested_absmax"], offset)


def parts_of(name: str, matrix: Nf4Matrix, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors to write for weight `name`. dtype: that readers dequantise to."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(matrix.shape),
    }
    found = {name: matrix.packed[:, None], f"{name}.absmax": matrix.scales, f"{name}.quant_map": nf4_table().values}
    if matrix.nested is not None and matrix.offset is not None:
        state |= {
            "nested_blocksize": NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(matrix.offset),
        }
        found[f"{name}.nested_absmax"] = matrix.nested
        found[f"{name}.nested_quant_map"] = dynamic_table(signed=True).values
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {**found, f"{name}.{STATE}nf4": text}


def _check(name: str, state: Mapping[str, Any], found: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Compare shapes and dtypes of a weight's parts with what its state says; a hostile file must not reach past a tensor's end."""
    count = prod(state["shape"])
    blocks = block_count(count, BLOCK)
    nested = "nested_blocksize" in state
    wanted = {
        "": (block_count(count, 2), torch.uint8),
        "absmax": (blocks, torch.uint8 if nested else torch.float32),
        "quant_map": (16, torch.float32),
    }
    if nested:
        wanted |= {
            "nested_absmax": (block_count(blocks, NESTED_BLOCK), torch.float32),
            "nested_quant_map": (256, torch.float32),
        }
    wrong = []
    for part, (size, dtype) in wanted.items():
        shape, own = found.get(part, (None, None))
        if shape is None or prod(shape) != size or own != dtype:
            is_ = "missing" if shape is None else f"{own} {list(shape)}"
            wrong.append(f"{name}{part and '.'}{part} is {is_}, expected {size} of {dtype}")
    if wrong:
        raise ModelError("the parts of a quantised weight do not fit together: " + "; ".join(wrong), fix=_FIX)
