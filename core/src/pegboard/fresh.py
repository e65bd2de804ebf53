"""Prompts of which nothing is in the cache yet, computed from their q, k and v by a backend that needs no pages.

The backend that has the cache writes all keys and values, and attends for the other sequences: decodes, prompts over a cached beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pegboard.errors import PegboardError, PluginError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionPlan, AttentionSpec, HeadNorms, KVCache, KVLayout

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Platform, PromptChoice
    from pegboard.plugins.load import Registry

SHORTEST = 2
"""Tokens of the shortest prompt that is computed apart: one of a single token is a decode to whoever lays out a batch."""


class FreshPrompts(AttentionBackend):
    """Attention by `cached`, but for prompts of at least `tokens` tokens of which nothing is cached: by `whole`.

    Adjacent prompts are one call of `whole`. Static plans, and batches without such prompts, are those of `cached`. What codes in the cache
    lose is lost to later tokens alone: a prompt's own attention reads keys and values as they were computed.
    """

    def __init__(self, cached: AttentionBackend, whole: AttentionBackend, tokens: int) -> None:
        self.cached, self.whole, self.tokens = cached, whole, max(tokens, SHORTEST)
        self.graph_safe, self.static_pages = cached.graph_safe, cached.static_pages  # type: ignore[misc]  # not the class's
        self.static_queries = cached.static_queries  # type: ignore[misc]

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return self.cached.unsupported(spec, dtype) or self.whole.unsupported(spec, dtype)

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        return self.cached.layout(spec, num_layers, page_size, dtype, shard)

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> AttentionPlan:
        if inputs.pad_to is not None or not (fresh := self._fresh(inputs)):
            return self.cached.plan(inputs, device, layout)
        return FreshPlan(self, inputs, fresh, device, layout)

    def _fresh(self, inputs: AttentionInputs) -> list[int]:
        """Return the sequences that are computed apart."""
        new, all_ = inputs.query_lens, inputs.seq_lens
        # Those before have one token each.
        return [i for i in range(inputs.num_decodes, len(new)) if new[i] == all_[i] and new[i] >= self.tokens]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: AttentionPlan, cache: KVCache | None
    ) -> Tensor:
        if not isinstance(plan, FreshPlan):
            return self.cached.attend(q, k, v, spec, plan, cache)
        return plan.complete(self.cached.attend(q, k, v, spec, plan.rest, cache), q, k, v, spec)

    def attend_qkv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        norms: HeadNorms | None,
        spec: AttentionSpec,
        plan: AttentionPlan,
        cache: KVCache | None,
    ) -> Tensor | None:
        if not isinstance(plan, FreshPlan):
            return self.cached.attend_qkv(qkv, cos, sin, norms, spec, plan, cache)
        kept = self.cached.attend_qkv_kept(qkv, cos, sin, norms, spec, plan.rest, cache)
        return None if kept is None else plan.complete(*kept, spec)


class FreshPlan:
    """A batch with prompts that are computed apart. rest: the plan of the backend that has the cache, for all others."""

    rest: AttentionPlan

    def __init__(
        self,
        backend: FreshPrompts,
        inputs: AttentionInputs,
        fresh: Sequence[int],
        device: torch.device,
        layout: KVLayout | None,
    ) -> None:
        self._backend, self._device, self._layout = backend, device, layout
        self._lay_out(inputs, fresh)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs: shapes change."""
        self._lay_out(inputs, self._backend._fresh(inputs))

    def _lay_out(self, inputs: AttentionInputs, fresh: Sequence[int]) -> None:
        self.rest = self._backend.cached.plan(replace(inputs, apart=fresh), self._device, self._layout)
        lens = [int(length) for length in inputs.query_lens]
        starts = [0]
        for length in lens:
            starts.append(starts[-1] + length)
        self._tokens = starts[-1]
        self._runs: list[tuple[slice, AttentionPlan]] = []
        for first, last in _runs(fresh):
            own = lens[first : last + 1]
            plan = self._backend.whole.plan(AttentionInputs(own, own), self._device, None)
            self._runs.append((slice(starts[first], starts[last + 1]), plan))

    def complete(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """Return [T, num_heads, head_dim]: `out`, which is changed, with the rows of the prompts that are computed apart."""
        for rows, plan in self._runs:
            found = self._backend.whole.attend(q[rows], k[rows], v[rows], spec, plan, None)
            if len(found) == self._tokens:
                return found
            out[rows] = found
        return out


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last of each run of ascending numbers that follow one another."""
    breaks = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    bounds = [0, *breaks, len(numbers)]
    return [(numbers[a], numbers[b - 1]) for a, b in pairwise(bounds) if a < b]


def named(
    registry: Registry, name: str, platform: Platform, spec: AttentionSpec, dtype: torch.dtype, index: int
) -> AttentionBackend:
    """Return the attention backend called `name`: a plugin's, or "A+B" for A with fresh prompts by B, from the length on that the platform
    tells for B; all prompts where it tells none.

    Raises PluginError for a B that is not usable here, or an A that has no cache.
    """
    first, plus, second = name.partition("+")
    cached: AttentionBackend = registry.create("attention", first)
    if not plus:
        return cached
    if not cached.paged:
        raise PluginError(
            f"attention {first!r} has no cache, so that it cannot come first in {name!r}", fix=f"use {second}+{first}"
        )
    if reason := unusable(registry, second):
        raise PluginError(
            f"attention {second!r} of {name!r} cannot be used here: {reason}", fix=f"use attention: {first}"
        )
    known = {choice.name: choice.tokens for choice in platform.prompt_attention(spec, dtype, index)}
    return FreshPrompts(cached, registry.create("attention", second), known.get(second, SHORTEST))


def offered(
    registry: Registry, platform: Platform, specs: Sequence[AttentionSpec], dtype: torch.dtype, index: int
) -> tuple[PromptChoice | None, list[str]]:
    """Return what an automatic choice takes for fresh prompts of such layers, or None; and why each one before it is passed by."""
    installed = {record.name for record in registry.records("attention") if record.status == "ok"}
    passed: list[str] = []
    for choice in platform.prompt_attention(specs[0], dtype, index):
        reason = _against(registry, choice, specs, dtype) if choice.name in installed else "not installed"
        if reason is None:
            return choice, passed
        passed.append(f"{choice.name}: {reason}")
    return None, passed


def _against(
    registry: Registry, choice: PromptChoice, specs: Sequence[AttentionSpec], dtype: torch.dtype
) -> str | None:
    try:
        if told := unusable(registry, choice.name):
            return told
        if not choice.default:
            return f"only by name, {choice.reason}"
        backend: AttentionBackend = registry.create("attention", choice.name)
    except PegboardError as error:  # nobody asked for it by name
        return error.message
    return next((reason for spec in specs if (reason := backend.unsupported(spec, dtype))), None)


def unusable(registry: Registry, name: str) -> str:
    """Return why an attention plugin's probe says that it cannot be used here; empty when it can.

    Raises PluginError when there is no such plugin, or its front door does not open.
    """
    from pegboard.plugins.doors import run_probe

    spec = registry.spec("attention", name)
    try:
        probe = run_probe(spec)
    except Exception as error:
        return f"its probe raises {type(error).__name__}: {error}"
    return "" if probe.usable else probe.reason
