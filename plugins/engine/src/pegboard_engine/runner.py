"""One step of a model on its device: tensors only, no requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.plugins.load import Registry
from pegboard.types import AttentionInputs, CachePlan, ForwardContext, KVCache, StepPlan, StepResult
from pegboard_engine.adapters import ServedAdapters
from pegboard_engine.alone import alone
from pegboard_engine.graphs import DecodeGraphs
from pegboard_engine.rows import first_rows
from pegboard_engine.sampling.logprobs import Logprobs, logprobs_of
from pegboard_engine.sampling.sampler import Sampled, Sampler

_HEAD_ROWS = 256


@dataclass(slots=True)
class Started:
    """A step whose work was given to the device. Its tensors are on their way to the host; `ready` is recorded behind them."""

    step: int
    ids: Tensor
    valid: Tensor
    ready: torch.Event | None
    logprobs: Logprobs | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def wait(self) -> StepResult:
        """Wait for it. extras: "valid" [M] bool, False where the logits were not finite, and what the plan asked for."""
        if self.ready is not None:
            self.ready.synchronize()
        extras = {"valid": self.valid.numpy(), **self.extras}
        if self.logprobs is not None:
            extras["logprobs"] = self.logprobs.host()
        return StepResult(self.step, self.ids.numpy(), extras)


class Runner:
    """A model with its cache, its block table and its sampler."""

    def __init__(self, built: BuiltModel, cache: CachePlan, registry: Registry | None = None) -> None:
        self._built = built
        self._groups = 1 + max(spec.group for spec in built.model.attention_specs)
        self._vocab_size = built.model.vocab_size
        self._on_host = built.device.type == "cpu"
        self._sampler = Sampler(self._vocab_size, built.device, registry)
        self._table = torch.zeros(cache.num_slots, cache.max_pages, dtype=torch.int32)
        # The token sampled last in each slot, for steps that were planned before it was known.
        self._last = torch.zeros(cache.num_slots, dtype=torch.int64, device=built.device)
        self.adapters = ServedAdapters(built, cache, registry)
        self.cache = KVCache.allocate(cache.layout, cache.num_pages, built.device)
        self._graphs = DecodeGraphs(built, self.cache, self._groups) if cache.graphs else None

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> Started:
        """Run a step, or give it to the device."""
        slots, columns, pages = plan.table
        if len(slots):
            self._table.numpy()[slots, columns] = pages
        inputs = AttentionInputs(
            plan.query_lens,
            plan.seq_lens,
            self._table,
            torch.from_numpy(plan.slot_mapping),
            plan.num_decodes,
            table_rows=plan.slots,
        )
        ids, positions = self._input_ids(plan), self._to_device(plan.positions)
        extras: dict[str, Any] = {}
        logits = None
        extents = self._extents(plan)
        if self._graphs is not None and plan.num_decodes == len(plan.slots) and plan.adapters is None:
            logits = self._graphs.run(ids, positions, inputs, extents)
        if logits is None:
            logits = self._forward(plan, ids, positions, inputs, extents, extras)
        if logits is None:
            return Started(
                plan.step, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool), None, None, extras
            )
        with alone(logits):
            sampled = self._sample(plan, logits, extras)
        if sampled.errors:
            extras["errors"] = sampled.errors
        ids, valid = (x.to("cpu", non_blocking=True) for x in (sampled.ids, sampled.valid))
        return Started(plan.step, ids, valid, self._recorded(), sampled.logprobs, extras)

    def _forward(
        self,
        plan: StepPlan,
        ids: Tensor,
        positions: Tensor,
        inputs: AttentionInputs,
        extents: Tensor | None,
        extras: dict[str, Any],
    ) -> Tensor | None:
        """Run the model; return the logits of the rows to sample from, and put what else was asked for into `extras`."""
        built, device = self._built, self._built.device
        more = plan.extras.get("more_rows")
        rows = plan.logits_indices if more is None else np.concatenate([plan.logits_indices, more])
        all_rows = more is None and len(rows) == len(plan.input_ids)
        ctx = ForwardContext(
            positions=positions,
            plans=[built.attention.plan(inputs, device, self.cache.layout)] * self._groups,
            cache=self.cache,
            adapter_slots=self.adapters.rows(plan.adapters, plan.query_lens),
            logits_indices=None if all_rows else self._to_device(rows),
            extents=extents,
        )
        hidden = built.model(ids, ctx)
        count = len(plan.logits_indices)
        extras.update(self._extras(plan, hidden[count:]))
        return built.model.head(hidden[:count]) if count else None

    def _sample(self, plan: StepPlan, logits: Tensor, extras: dict[str, Any]) -> Sampled:
        """Choose tokens, and keep the last one of each slot; say in `extras` how many of each proposal stand."""
        if (drafts := plan.extras.get("drafts")) is None:
            sampled = self._sampler.sample(logits, plan.sampling)
            self._last[self._to_device(plan.logits_slots)] = sampled.ids
            return sampled
        verified = self._sampler.verify(logits, plan.sampling, _proposed(plan, drafts))
        extras["accepted"] = verified.accepted.cpu().numpy()
        starts = first_rows(drafts)
        last = verified.ids[self._to_device(starts + extras["accepted"])]
        self._last[self._to_device(plan.logits_slots[starts])] = last
        return verified

    def update_weights(self, version: int) -> None:
        """Refresh what was derived from the weights."""
        with torch.no_grad():
            self._built.model.refresh_derived(version)

    def load_adapter(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
        """Put an adapter into a slot; see `Executor.load_adapter`."""
        self.adapters.load(slot, tensors, config)

    def unload_adapter(self, slot: int) -> None:
        """Empty a slot."""
        self.adapters.unload(slot)

    def _extents(self, plan: StepPlan) -> Tensor | None:
        """Return [T] how many tokens each row's sequence has, for models that ask; those known to the plan's maker, or so far."""
        if self._built.model.rope_limit is None:
            return None
        lens = plan.extras.get("extents", plan.seq_lens)
        return self._to_device(np.repeat(np.asarray(lens, dtype=np.int64), plan.query_lens))

    def _input_ids(self, plan: StepPlan) -> Tensor:
        ids = torch.from_numpy(plan.input_ids)
        unknown = np.flatnonzero(plan.input_ids[: plan.num_decodes] < 0)
        ids = ids.to(self._built.device)
        if len(unknown):
            ids[self._to_device(unknown)] = self._last[self._to_device(plan.slots[unknown])]
        return ids

    def _extras(self, plan: StepPlan, hidden: Tensor) -> dict[str, Any]:
        """What was asked for beside tokens, from the hidden states [P, H] of `more_rows`."""
        extras: dict[str, Any] = {}
        start = 0
        if (prompt := plan.extras.get("prompt")) is not None:
            targets, most = prompt
            start = len(targets)
            # A whole prompt's logits at once would take more memory than the model.
            chunks = zip(hidden[:start].split(_HEAD_ROWS), self._to_device(targets).split(_HEAD_ROWS), strict=True)
            extras["prompt"] = [logprobs_of(self._built.model.head(x), ids, most).host() for x, ids in chunks]
        if (pool := plan.extras.get("pool")) is not None:
            sums = [hidden[start + first : start + stop].float().sum(0) for first, stop in pool.tolist()]
            extras["pooled"] = torch.stack(sums).cpu().numpy()
        return extras

    def _to_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor if self._on_host else tensor.to(self._built.device, non_blocking=True)

    def _recorded(self) -> torch.Event | None:
        if self._on_host:
            return None
        event = torch.Event(self._built.device)
        event.record()
        return event


def _proposed(plan: StepPlan, drafts: np.ndarray) -> list[np.ndarray]:
    """Return the proposed ids of each sampled sequence: the inputs of its rows but the first."""
    return [
        plan.input_ids[plan.logits_indices[first + 1 : first + 1 + count]]
        for first, count in zip(first_rows(drafts).tolist(), drafts.tolist(), strict=True)
    ]
