"""Storage for an empty model, and its weights streamed in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pegboard.divide import Division, part_whole
from pegboard.nn import CausalLM, Embedding, Head, Linear, Rotary
from pegboard.nn.linear import SharedStorage
from pegboard.nn.parallel import Split
from pegboard.weights.pump import Pump, Readable

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor


def materialise(
    model: CausalLM, device: torch.device, dtype: torch.dtype, reserve: Callable[[int], Tensor | None] | None
) -> None:
    """Give the empty parameters storage on `device`, fused groups first as one block each. reserve: bytes -> where to lay them all."""
    empty = [p for p in model.parameters() if p.is_meta]
    block = None if reserve is None else reserve(sum(_room(p.numel() * dtype.itemsize) for p in empty))
    used = 0

    def make(shape: tuple[int, ...]) -> Tensor:
        nonlocal used
        if block is None:
            return torch.empty(shape, device=device, dtype=dtype)
        size = math.prod(shape) * dtype.itemsize
        part = block[used : used + size].view(dtype).view(shape)
        used += _room(size)
        return part

    modules = list(model.modules())
    for module in modules:
        if isinstance(module, SharedStorage):
            module.materialise(make)
    for module in modules:
        if isinstance(module, Rotary):
            module.materialise(device)
            continue
        missing = [(name, p) for name, p in module._parameters.items() if p is not None and p.is_meta]
        if missing and (isinstance(module, (Linear, Embedding, Head)) or hasattr(module, "weight")):
            for name, parameter in missing:
                storage = make(tuple(parameter.shape))
                setattr(module, name, nn.Parameter(storage, requires_grad=parameter.requires_grad))
    model.fuse()


def _room(num_bytes: int) -> int:
    """Return the bytes to the next address at which any tensor may begin."""
    return -(-num_bytes // 64) * 64


def stream(
    model: CausalLM, tensors: Mapping[str, LazyTensor], division: Division | None, pump: Pump | None = None
) -> None:
    """Copy each tensor, or what of it is here, into its place, one at a time: the peak is the model and one tensor.

    pump: for those of files that go to a device as they are.
    """
    modules = dict(model.named_modules())
    splits, whole = ({}, {}) if division is None else (division.splits, dict(division.whole))
    left = Counter(name.rpartition(".")[0] for name in tensors)
    for name, lazy in tensors.items():
        owner_name, _, leaf = name.rpartition(".")
        owner: Any = whole[owner_name][0] if owner_name in whole else modules[owner_name]
        owner = getattr(owner, "base", owner)
        _load(owner, leaf, lazy, splits.get(name), pump if owner_name not in whole else None)
        left[owner_name] -= 1
        if division is not None and owner_name in whole and not left[owner_name]:
            part_whole(model, division, owner_name)
    if whole:  # groups fused what was there before
        for module in model.modules():
            if isinstance(module, SharedStorage):
                module.unfuse()
        model.fuse()


def _load(owner: Any, leaf: str, lazy: LazyTensor, split: Split | None, pump: Pump | None) -> None:
    """Give one module one of its tensors."""
    parts, load_parts = getattr(lazy, "parts", None), getattr(owner, "load_parts", None)
    if parts is not None and callable(load_parts):
        load_parts(leaf, {part: tensor.load() for part, tensor in parts.items()})
        return
    load, read_into = getattr(owner, "load_weight", None), getattr(lazy, "read_into", None)
    if split is None and not callable(load) and callable(read_into):
        target = getattr(owner, leaf)
        if target.device.type == "cpu" and target.dtype == lazy.dtype and target.is_contiguous():
            read_into(target)
            return
        if pump is not None and hasattr(lazy, "read_bytes") and target.is_contiguous():
            pump.put(cast(Readable, lazy), target)
            return
    if split is None:
        value = lazy.load()
    elif split.dim == 0 and split.start is not None:
        value = lazy.rows(split.start, split.start + split.size)
    else:
        value = split.of(lazy.load())
    if callable(load):
        load(leaf, value)
        return
    with torch.no_grad():
        getattr(owner, leaf).copy_(value)
