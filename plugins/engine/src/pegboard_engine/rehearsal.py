"""What the first steps of a model are going to ask of its device, told while the weights are still read.

A copy of the model with one layer of each kind, on the meta device, takes a prompt and decodes through the very code that serves; the
platform makes ready what it sees asked for.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pegboard.loading import materialise
from pegboard.nn import Attention, CausalLM
from pegboard.types import AttentionInputs, CachePlan, ForwardContext, KVCache
from pegboard_engine.feed import computes_apart
from pegboard_engine.runner import decode_kernels

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.platform import Rehearsal
    from pegboard.ops import KernelTable

PROMPTS = (16, 19, 512)
"""Lengths of prompts. Kernels are compiled apart for sizes that 16 divides, and block sizes go by length."""
DECODES = (1, 2, 4, 8)
"""Sequences that decode at once."""
_META = torch.device("meta")


def rehearse(built: BuiltModel, cache: CachePlan) -> Rehearsal | None:
    """Begin a rehearsal of a model whose weights are not loaded yet; None where there is nothing to gain."""
    if not (built.pending and computes_apart(built)) or built.division is not None or built.adapted:
        return None
    model = one_of_each(built.model)
    kernels = decode_kernels(built)

    def work() -> None:
        materialise(model, _META, built.dtype, None)
        with torch.inference_mode():
            _Steps(built, model, cache, kernels).run()

    return built.platform.rehearse(work, built.device.index or 0)


def one_of_each(model: CausalLM) -> CausalLM:
    """Return a copy of a model without storage, of whose layers there is one of each kind: of those that differ in their modules' types
    or in what their attention computes.
    """
    layers = model.model.layers
    chosen = list({_kind(layer): layer for layer in reversed(layers)}.values())
    memo: dict[int, Any] = {}
    for module in (model, *(module for layer in chosen for module in layer.modules())):
        for shared in (getattr(module, "kernels", None), getattr(module, "backend", None)):
            if shared is not None:
                memo[id(shared)] = shared
    memo[id(layers)] = nn.ModuleList([copy.deepcopy(layer, memo) for layer in reversed(chosen)])
    return copy.deepcopy(model, memo)


def _kind(layer: nn.Module) -> Any:
    attentions = [replace(m.spec, layer=0) for m in layer.children() if isinstance(m, Attention)]
    return type(layer), tuple(type(child) for child in layer.children()), tuple(attentions)


class _Steps:
    """Steps of a model without storage."""

    def __init__(self, built: BuiltModel, model: CausalLM, cache: CachePlan, kernels: KernelTable) -> None:
        self._built, self._model, self._kernels = built, model, kernels
        self._plan = cache
        self._cache = KVCache.allocate(cache.layout, cache.num_pages, _META)
        self._groups = 1 + max(spec.group for spec in built.model.attention_specs)
        for rotary in model.rotaries:
            rotary.tabulate(cache.max_pages * cache.layout.page_size, built.dtype)  # type: ignore[operator]

    def run(self) -> None:
        """Go through the steps, those first that come first. One that fails is passed by; its error is raised at the end."""
        longest = self._plan.max_pages * self._plan.layout.page_size
        steps = [partial(self._ragged, [length]) for length in PROMPTS if length <= longest]
        steps += [partial(self._decode, count) for count in DECODES if count <= self._plan.num_slots]
        if PROMPTS[1] < longest:
            steps += [partial(self._ragged, [PROMPTS[1]], cached=1), partial(self._ragged, [1, PROMPTS[1]], cached=1)]
        error: Exception | None = None
        for step in steps:
            try:
                step()
            except Exception as raised:
                error = raised
        if error is not None:
            raise error

    def _ragged(self, lengths: list[int], cached: int = 0) -> None:
        """A step with prompts, and with one sequence that decodes if the first length is 1. cached: tokens before those of each."""
        new, rows = np.array(lengths, np.int32), sum(lengths)
        inputs = self._inputs(new, new + np.int32(cached), rows, int(lengths[0] == 1))
        self._logits(_ids(rows), inputs, _ids(len(lengths)))

    def _decode(self, count: int) -> None:
        """A step as it is captured: from ids that are not all known to those that are told."""
        ones = np.ones(count, np.int32)
        inputs = self._inputs(ones, ones, count, count)
        inputs.pad_to, inputs.pad_pages = count, 0
        last, slots = _ids(self._plan.num_slots + 1), _ids(count)
        ids, most = self._logits(self._kernels.known_ids(_ids(count), last, slots), inputs, None)
        self._kernels.keep_last(ids, most, last, slots)

    def _inputs(self, query_lens: Any, seq_lens: Any, tokens: int, decodes: int) -> AttentionInputs:
        """Return a batch in which everything lies in page 0."""
        table = torch.zeros(len(query_lens) + 1, self._plan.max_pages, dtype=torch.int32)
        return AttentionInputs(
            query_lens,
            seq_lens,
            table,
            torch.zeros(tokens, dtype=torch.int64),
            decodes,
            table_rows=np.arange(len(query_lens), dtype=np.int32),  # type: ignore[arg-type]
            device_table=table.to(self._built.device),
        )

    def _logits(self, ids: Tensor, inputs: AttentionInputs, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what is sampled, greedily."""
        built = self._built
        plan = built.attention.plan(inputs, built.device, self._plan.layout)
        ctx = ForwardContext(
            positions=_ids(len(ids)),
            plans=[plan] * self._groups,
            cache=self._cache,
            logits_indices=rows,
            extents=None if built.model.rope_limit is None else _ids(len(ids)),
        )
        sampled: tuple[Tensor, Tensor] = self._kernels.sample(self._model.head(self._model(ids, ctx)))
        return sampled


def _ids(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device=_META)
