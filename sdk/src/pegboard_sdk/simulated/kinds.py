"""What an operation of torch means to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_NO_WORK = {*_EMPTY, "detach", "alias", "lift_fresh", "_unsafe_view", "set_", "resize_", "_local_scalar_dense"}
_MASKED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
TAKES_HOST_INDICES = frozenset(_MASKED)
"""Operations that copy indices to the device by themselves, which the host waits for."""

_SIZES = {_aten.repeat_interleave.Tensor, _aten.repeat_interleave.self_Tensor}


def name_of(func: Any) -> str:
    """Return an operation's name, with its library's in front where that is not torch's own."""
    namespace, _, name = func._schema.name.partition("::")
    return name if namespace == "aten" else f"{namespace}.{name}"


def is_foreign(func: Any) -> bool:
    """Return whether an operation is none of torch's own."""
    return not func._schema.name.startswith("aten::")


def launches(func: Any) -> bool:
    """Return whether an operation has something to do: it makes more than another view of memory."""
    return not (func.is_view or func._schema.name.partition("::")[2] in _NO_WORK)


def is_empty(func: Any) -> bool:
    """Return whether an operation makes memory without values."""
    return func._schema.name.partition("::")[2] in _EMPTY


def waits_for(func: Any, args: Any, kwargs: Any) -> str | None:
    """Return why the host waits in an operation on a device; None where it does not."""
    name = name_of(func)
    if func in _MASKED:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return f"{name} by a mask"
        if any(x.device.type == "cpu" for x in indices) and any(x.device.type != "cpu" for x in (args[0], *indices)):
            return f"{name} by indices on the host"
        return None
    if func in _SIZES:
        return None if kwargs.get("output_size") is not None else name
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        return name
    return None


def poison(dtype: torch.dtype) -> Any:
    """Return a value that no result is mistaken for."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).min + 1
