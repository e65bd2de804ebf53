"""How many pages the cache gets."""

from __future__ import annotations

from dataclasses import dataclass

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError
from pegboard.types import KVLayout
from pegboard_engine.options import EngineOptions, parse_memory

_DEFAULT_BYTES = 512 * 2**20
_DEFAULT_CONTEXTS = 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the cache takes. num_pages counts the reserved page 0; longest: tokens that one request can have in all."""

    layout: KVLayout
    num_pages: int
    longest: int

    @property
    def bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.num_pages * self.layout.page_bytes


def plan_memory(built: BuiltModel, options: EngineOptions) -> MemoryPlan:
    """Return the plan for a model. Raises ConfigError when `max_model_len` or `kv_memory` cannot be met, saying what could."""
    layout = cache_layout(built, options.page_size)
    limit = built.model.max_positions
    if options.max_model_len is not None and options.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {options.max_model_len}, but the model's positions end at {limit}",
            fix=f"use max_model_len of at most {limit}",
        )
    length = options.max_model_len or limit
    pages_each = -(-length // options.page_size)
    useful = 1 + pages_each * options.max_num_seqs
    if options.kv_memory is None:
        budget = min(_DEFAULT_BYTES, _available(built) // 2)
        useful = min(useful, 1 + pages_each * _DEFAULT_CONTEXTS)
    else:
        amount = parse_memory(options.kv_memory)
        budget = amount if isinstance(amount, int) else int(_available(built) * amount)
    pages = min(useful, budget // layout.page_bytes)
    if pages < 2:
        raise ConfigError(
            f"kv_memory of {budget} bytes holds no page of {layout.page_bytes} bytes",
            fix=f"give at least {2 * layout.page_bytes} bytes, or lower page_size",
        )
    fits = (pages - 1) * options.page_size
    if options.max_model_len is not None and fits < options.max_model_len:
        raise ConfigError(
            f"max_model_len {options.max_model_len} needs {(pages_each + 1) * layout.page_bytes} bytes of cache, kv_memory gives {budget}",
            fix=f"raise kv_memory, or use max_model_len of at most {fits}",
        )
    return MemoryPlan(layout, pages, min(length, fits))


def cache_layout(built: BuiltModel, page_size: int) -> KVLayout:
    """Return the layout that the model's attention backend wants."""
    specs = built.model.attention_specs
    shapes = {(spec.num_kv_heads, spec.head_dim) for spec in specs}
    if len(shapes) != 1:
        raise ModelError(
            f"layers differ in their keys' shape (heads, size): {sorted(shapes)}; one cache layout holds one shape",
            fix="use an engine that has a cache group for each shape",
        )
    return built.attention.layout(specs[0], len(specs), page_size, built.dtype)


def _available(built: BuiltModel) -> int:
    index = built.device.index or 0
    for device in built.platform.devices():
        if device.index == index:
            return device.available_memory
    return _DEFAULT_BYTES
