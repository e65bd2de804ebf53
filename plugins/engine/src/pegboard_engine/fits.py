"""What would fit, where a model with its cache does not."""

from __future__ import annotations

from collections.abc import Mapping

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.nn import Linear
from pegboard.types import CachePlan, KVLayout

_STORED = {"as it is": None, "int8": 8.0, "int4": 4.5}
"""Bits of a weight in linear layers, scales of groups included."""


def does_not_fit(
    built: BuiltModel, layout: KVLayout, cache: int, others: Mapping[str, int], available: int
) -> ConfigError:
    """Return an error with a table: what is needed, and what weights in fewer bits would leave for the cache.

    cache: bytes that were asked for, two pages at least. others: bytes by use. available: before any of it is allocated.
    """
    weights = built.weight_bytes
    linear = sum(module.weight.numel() for module in built.model.modules() if type(module) is Linear)
    loaded = 0 if built.pending else weights
    room = available + loaded - sum(others.values())
    needs = {"weights": weights, **{name: size for name, size in others.items() if size}, "cache": cache}
    lines = [f"{name:10} {_gib(size):>11}" for name, size in needs.items()]
    lines.append(f"{'in all':10} {_gib(sum(needs.values())):>11} of {_gib(available + loaded)}")
    tokens_of = layout.page_size / layout.page_bytes
    for name, bits in _STORED.items() if linear else ():
        size = weights if bits is None else int(weights - linear * (built.dtype.itemsize - bits / 8))
        left = room - size
        fits = f"leave {_gib(left)}, {int(left * tokens_of):,} tokens" if left > 2 * layout.page_bytes else "do not fit"
        lines.append(f"weights {name}: {_gib(size)}, {fits}")
    lowered = (
        "lower kv_memory, max_num_tokens or max_num_seqs" if weights + sum(others.values()) < available + loaded else ""
    )
    fix = lowered or "store the weights in fewer bits (`quantizer`), or use a device with more memory"
    return ConfigError("the model and its cache do not fit into the device's memory\n" + "\n".join(lines), fix=fix)


def ran_out(built: BuiltModel, cache: CachePlan) -> ConfigError:
    """Return an error for a device that had less memory than it told."""
    index = built.device.index or 0
    total = sum(device.total_memory for device in built.platform.devices() if device.index == index)
    size = cache.num_pages * cache.layout.page_bytes
    return ConfigError(
        f"the device's memory ran out at the start: {_gib(built.weight_bytes)} of weights and {_gib(size)} of cache are asked of "
        f"{_gib(total)}, of which others hold a part",
        fix="lower kv_memory, or end what else uses the device",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
