"""How memory is divided: weights, workspace, cache. Planned before any of it is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError
from pegboard.types import KVLayout
from pegboard_engine.buckets import captured_rows
from pegboard_engine.captured import Kind, buckets_of
from pegboard_engine.feed import computes_apart
from pegboard_engine.fits import does_not_fit
from pegboard_engine.graphs import captures_whole_steps
from pegboard_engine.options import EngineOptions, parse_memory

_DEFAULT_BYTES = 512 * 2**20
_DEFAULT_CONTEXTS = 4
_DEFAULT_SHARE = 0.9
"""Of what weights and workspace leave of a device's own memory, which nobody else is likely to want."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by use. num_pages counts the reserved page 0; longest: tokens that one request can have in all.

    available: what the device had before anything of this was allocated. graphs: what captured steps keep. adapters: left for those
    beside the model; adapters_most: what they may come to, `adapters_note` being for how many.
    """

    layout: KVLayout
    num_pages: int
    longest: int
    weights: int
    workspace: int
    available: int
    adapters: int = 0
    adapters_most: int = 0
    adapters_note: str = ""
    graphs: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.num_pages * self.layout.page_bytes

    def table(self) -> str:
        """Return the plan as lines for people."""
        tokens = (self.num_pages - 1) * self.layout.page_size
        pages = f"{self.num_pages - 1:,} pages of {self.layout.page_size} tokens, {self.layout.dtype}"
        rows = [
            ("weights", self.weights, ""),
            ("workspace", self.workspace, "estimated, for the largest step"),
            ("cache", self.bytes, pages),
        ]
        if self.graphs:
            rows.append(("graphs", self.graphs, "logits of captured steps"))
        if self.adapters_most:
            note = "at most, for" if self.adapters else f"{_mib(self.adapters_most)} more with"
            rows.append(("adapters", self.adapters, f"{note} {self.adapters_note}"))
        whole = self.weights + self.workspace + self.bytes + self.adapters + self.graphs
        rows.append(("in all", whole, f"of {_mib(self.available)} available"))
        lines = [f"{name:10} {_mib(size):>12}  {note}".rstrip() for name, size, note in rows]
        return "\n".join([*lines, f"one request can have {self.longest:,} tokens, all together {tokens:,}"])


def plan_memory(built: BuiltModel, options: EngineOptions, adapters: int = 0, most_queries: int = 1) -> MemoryPlan:
    """Return the plan for a model. Raises ConfigError when `max_model_len` or `kv_memory` cannot be met, saying what could.

    adapters: the most bytes that adapters beside the model may take. They are left room for where `max_adapters` was asked for; its
    default only allows them, at the cost of what is free when one is loaded. most_queries: as of `CachePlan`.
    """
    layout = cache_layout(built, options.page_size, options.kv_dtype)
    limit = built.model.max_positions
    if options.max_model_len is not None and options.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {options.max_model_len}, but the model's positions end at {limit}",
            fix=f"use max_model_len of at most {limit}",
        )
    length = options.max_model_len or limit
    weights, workspace, available = built.weight_bytes, _workspace(built, options, length), _available(built)
    reserved = adapters if "max_adapters" in options.model_fields_set else 0
    graphs = captured_bytes(built, options, most_queries) if options.graphs else 0
    left = max(0, available - workspace - reserved - graphs - (weights if built.pending else 0))
    pages_each = -(-length // options.page_size)
    useful = 1 + pages_each * options.max_num_seqs
    apart = computes_apart(built)
    if options.kv_memory is None and apart:
        budget = int(left * _DEFAULT_SHARE)
    elif options.kv_memory is None:
        budget = min(_DEFAULT_BYTES, left // 2)
        useful = min(useful, 1 + pages_each * _DEFAULT_CONTEXTS)
    else:
        amount = parse_memory(options.kv_memory)
        budget = amount if isinstance(amount, int) else int(left * amount)
    pages = min(useful, budget // layout.page_bytes)
    # The host takes memory for a cache as it is used, and may have more by then.
    if apart and (pages < 2 or pages * layout.page_bytes > left):
        wanted = max(2, pages) * layout.page_bytes
        raise does_not_fit(
            built, layout, wanted, {"workspace": workspace, "graphs": graphs, "adapters": reserved}, available
        )
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
    note = f"{options.max_adapters} of rank {options.max_adapter_rank} on every layer"
    return MemoryPlan(
        layout,
        pages,
        min(length, fits),
        weights,
        workspace,
        available,
        reserved,
        adapters,
        (adapters and note) or "",
        graphs,
    )


def cache_layout(built: BuiltModel, page_size: int, dtype: str = "auto") -> KVLayout:
    """Return the layout that the model's attention backend wants. dtype: of the cache, "auto" for the model's."""
    specs = built.model.attention_specs
    shapes = {(spec.num_kv_heads, spec.head_dim) for spec in specs}
    if len(shapes) != 1:
        raise ModelError(
            f"layers differ in their keys' shape (heads, size): {sorted(shapes)}; one cache layout holds one shape",
            fix="use an engine that has a cache group for each shape",
        )
    chosen = built.dtype if dtype == "auto" else getattr(torch, dtype)
    return built.attention.layout(specs[0], len(specs), page_size, chosen)


def captured_bytes(built: BuiltModel, options: EngineOptions, most_queries: int = 1) -> int:
    """Return what captured steps keep: the logits of each size. Those of adapters count where `max_adapters` was asked for, as they do."""
    if not captures_whole_steps(built):
        return 0
    queries = min(most_queries, built.attention.static_queries)
    rows = 0
    for adapted in (False, True) if options.max_adapters and "max_adapters" in options.model_fields_set else (False,):
        for kind in dict.fromkeys((Kind(1, adapted), Kind(queries, adapted))):
            rows += sum(buckets_of(built, captured_rows(options.max_num_seqs, kind.queries), kind).sizes)
    return rows * built.model.vocab_size * built.dtype.itemsize


def _workspace(built: BuiltModel, options: EngineOptions, length: int) -> int:
    """Estimate the largest step: the widest activations of all its tokens, the logits of all its requests; and the tables of angles."""
    config, hidden = built.config, built.model.hidden_size
    wide = config.get("intermediate_size")
    wide = wide if isinstance(wide, int) else 4 * hidden
    tokens = options.tokens_a_step(computes_apart(built))
    activations = tokens * (6 * hidden + 3 * wide) * built.dtype.itemsize
    angles = sum(2 * length * rotary.dim * built.dtype.itemsize for rotary in built.model.rotaries)  # type: ignore[misc, operator]
    return activations + angles + min(options.max_num_seqs, tokens) * built.model.vocab_size * 8


def _available(built: BuiltModel) -> int:
    index = built.device.index or 0
    for device in built.platform.devices():
        if device.index == index:
            return device.available_memory
    return _DEFAULT_BYTES


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
