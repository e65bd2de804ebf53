"""What the first steps of a model are going to ask of its device, told while the weights are still read.

A copy of the model with one layer of each kind, over the same storage, takes a prompt and decodes through the very code that serves; the
platform makes ready what it sees asked for. What torch computes is computed, from values that do not matter: its libraries make their
handles meanwhile.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

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

log = logging.getLogger("pegboard.engine")


class Rehearsed:
    """The rehearsal of a model that is loaded meanwhile. It begins when the model has storage."""

    def __init__(self, built: BuiltModel, cache: CachePlan) -> None:
        self._built, self._cache = built, cache
        self._begun: Rehearsal | None = None
        # Weights in other forms are laid out as they are read, and layers of a tensor-parallel group wait for the others.
        plain = built.quantizer is None and built.division is None and not built.adapted
        if cache.rehearse and built.pending and plain and computes_apart(built):
            built.pending.insert(1, self._begin)

    def _begin(self) -> None:
        built, kernels = self._built, decode_kernels(self._built)
        try:
            model = one_of_each(built.model)
        except Exception as error:  # modules of any plugin: what cannot be copied is served without this
            log.debug("the model is not rehearsed: %s: %s", type(error).__name__, error)
            return

        @torch.inference_mode()
        def work() -> None:
            _Steps(built, model, self._cache, kernels).run()

        self._begun = built.platform.rehearse(work, built.device.index or 0)

    def watched(self) -> None:
        """Wait until it is known what the first steps need."""
        if self._begun is not None:
            self._begun.watched()

    def close(self) -> None:
        """Leave alone what has not been begun."""
        if self._begun is not None:
            self._begun.close()


def one_of_each(model: CausalLM) -> CausalLM:
    """Return a copy of a model that shares its storage, of whose layers there is one of each kind: of those that differ in their
    modules' types or in what their attention computes. What its modules note on their way is the copy's.
    """
    layers = model.model.layers
    chosen = list({_kind(layer): layer for layer in reversed(layers)}.values())[::-1]
    others = [module for name, module in model.model.named_children() if name != "layers"]
    others += [module for module in model.children() if module is not model.model]
    memo: dict[int, Any] = {}
    for module in (model, model.model, *(part for whole in (*others, *chosen) for part in whole.modules())):
        memo |= {id(shared): shared for shared in _shared(vars(module))}
    memo[id(layers)] = nn.ModuleList([copy.deepcopy(layer, memo) for layer in chosen])
    return copy.deepcopy(model, memo)


def _shared(values: Any) -> Iterator[Any]:
    """Yield what copies of a module have in common: tensors, also those in its containers, its kernels and its attention backend."""
    for name, value in values.items():
        if isinstance(value, Tensor) or name in ("kernels", "backend"):
            yield value
        elif isinstance(value, dict) and name not in ("_modules",):
            yield from _shared(value)
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, Tensor))


def _kind(layer: nn.Module) -> Any:
    attentions = [replace(m.spec, layer=0) for m in layer.children() if isinstance(m, Attention)]
    return type(layer), tuple(type(child) for child in layer.children()), tuple(attentions)


class _Steps:
    """Steps of a model whose weights are not there."""

    def __init__(self, built: BuiltModel, model: CausalLM, cache: CachePlan, kernels: KernelTable) -> None:
        self._built, self._model, self._kernels = built, model, kernels
        self._plan = cache
        # Of a page that nobody's tokens are in, and another one.
        self._cache = KVCache.allocate(cache.layout, 2, built.device)
        self._groups = 1 + max(spec.group for spec in built.model.attention_specs)
        for rotary in model.rotaries:
            rotary.tabulate(1, built.dtype)  # type: ignore[operator]

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
        self._logits(rows, inputs, self._ids(len(lengths)))

    def _decode(self, count: int) -> None:
        """A step as it is captured: from ids that are not all known to those that are told."""
        ones = np.ones(count, np.int32)
        inputs = self._inputs(ones, ones, count, count)
        if not self._built.attention.static_pages:
            inputs.pad_to, inputs.pad_pages = count, 0
        last, slots = self._ids(self._plan.num_slots + 1), self._ids(count)
        self._kernels.known_ids(self._ids(count), last, slots)
        ids, most = self._logits(count, inputs, None)
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

    def _logits(self, count: int, inputs: AttentionInputs, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what is sampled, greedily."""
        built = self._built
        plan = built.attention.plan(inputs, built.device, self._plan.layout)
        ctx = ForwardContext(
            positions=self._ids(count),
            plans=[plan] * self._groups,
            cache=self._cache,
            logits_indices=rows,
            extents=None if built.model.rope_limit is None else 1 + self._ids(count),
        )
        sampled: tuple[Tensor, Tensor] = self._kernels.sample(self._model.head(self._model(self._ids(count), ctx)))
        return sampled

    def _ids(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self._built.device)
