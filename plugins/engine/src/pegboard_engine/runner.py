"""One step of a model on its device: tensors only, no requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.ops import KernelTable, kernel_table
from pegboard.plugins.load import Registry
from pegboard.types import CachePlan, ForwardContext, KVCache, StepPlan, StepResult
from pegboard_engine import ops  # noqa: F401  # registers what the table below is asked for
from pegboard_engine.adapters import ServedAdapters
from pegboard_engine.alone import alone
from pegboard_engine.captured import CapturedSteps
from pegboard_engine.experts import ExpertCounts
from pegboard_engine.feed import DeviceFeed, Fed, make_feed
from pegboard_engine.graphs import DecodeGraphs, captures_whole_steps
from pegboard_engine.rows import first_rows
from pegboard_engine.sampling.logprobs import Logprobs, logprobs_of
from pegboard_engine.sampling.sampler import Sampled, Sampler

_HEAD_ROWS = 256


@dataclass(slots=True)
class Started:
    """A step whose work was given to the device.

    told: [M] int64 on its way to the host, `ready` being recorded behind it: the sampled ids, and -1 - id where the logits were not finite.
    """

    step: int
    told: Tensor
    ready: torch.Event | None = None
    logprobs: Logprobs | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def wait(self) -> StepResult:
        """Wait for it. extras: "valid" [M] bool, False where the logits were not finite, and what the plan asked for."""
        if self.ready is not None:
            self.ready.synchronize()
        told = self.told.numpy()
        valid = told >= 0
        extras = {"valid": valid, **self.extras}
        if "accepted" in extras:
            extras["accepted"] = extras["accepted"].numpy()
        if self.logprobs is not None:
            extras["logprobs"] = self.logprobs.host()
        return StepResult(self.step, np.where(valid, told, -1 - told), extras)


def decode_kernels(built: BuiltModel) -> KernelTable:
    """Return the ops of a served model's platform, those of sampling included."""
    offered = built.platform.kernels("decode", built.dtype, built.device.index or 0)
    return kernel_table(offered, owner=f"platform {built.platform_name!r}")


class Runner:
    """A model with its cache, its block table and its sampler."""

    def __init__(self, built: BuiltModel, cache: CachePlan, registry: Registry | None = None) -> None:
        self._built = built
        self._groups = 1 + max(spec.group for spec in built.model.attention_specs)
        self._vocab_size = built.model.vocab_size
        self._kernels = decode_kernels(built)
        self._sampler = Sampler(self._vocab_size, built.device, registry, self._kernels)
        self._feed = make_feed(built, cache, self._kernels)
        self.adapters = ServedAdapters(built, cache, registry)
        self.cache = KVCache.allocate(cache.layout, cache.num_pages, built.device)
        for rotary in built.model.rotaries:
            rotary.tabulate(cache.max_pages * cache.layout.page_size, built.dtype)  # type: ignore[operator]
        self.expert_counts = ExpertCounts(built.model) if cache.count_experts else None
        self._graphs: DecodeGraphs | None = None
        self._captured: CapturedSteps | None = None
        if cache.graphs and isinstance(self._feed, DeviceFeed) and captures_whole_steps(built):
            self._captured = CapturedSteps(
                built, self.cache, self._feed, self._kernels, self._groups, self.adapters, cache.most_queries
            )
        elif cache.graphs:
            self._graphs = DecodeGraphs(built, self.cache, self._groups, self.adapters)

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> Started:
        """Run a step, or give it to the device."""
        chosen = None if self._captured is None else self._captured.choose(plan)
        fed = self._feed.put(plan, None if chosen is None else chosen.width)
        slots = self.adapters.rows(plan.adapters, plan.query_lens)
        extras: dict[str, Any] = {}
        logits: Tensor | None = None
        told: Tensor | None = None
        if self._captured is not None and chosen is not None:
            logits, told = self._captured.run(fed, chosen)
            if fed.rows is not None:
                logits = logits.index_select(0, fed.rows)
        elif self._graphs is not None and plan.num_decodes == len(plan.slots):
            logits = self._graphs.run(fed.ids, fed.positions, fed.inputs, fed.extents, slots)
        if logits is None:
            logits = self._forward(plan, fed, slots, extras)
        if logits is None:
            return Started(plan.step, torch.empty(0, dtype=torch.int64), None, None, extras)
        logprobs = None
        if told is None or plan.sampling is not None:
            with alone(logits):
                sampled, told = self._sample(plan, fed, logits, extras)
            logprobs = sampled.logprobs
            if sampled.errors:
                extras["errors"] = sampled.errors
        # A captured step writes to the same place the next time.
        told = told.to("cpu", non_blocking=True, copy=chosen is not None)
        started = Started(plan.step, told, self._recorded(), logprobs, extras)
        if self._captured is not None:
            self._captured.capture_due()
        return started

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Use a moment in which nothing is to be computed; return whether another one would be of use."""
        return self._captured is not None and self._captured.capture_next()

    def _forward(self, plan: StepPlan, fed: Fed, slots: Tensor | None, extras: dict[str, Any]) -> Tensor | None:
        """Run the model; return the logits of the rows to sample from, and put what else was asked for into `extras`."""
        built = self._built
        ctx = ForwardContext(
            positions=fed.positions,
            plans=[built.attention.plan(fed.inputs, built.device, self.cache.layout)] * self._groups,
            cache=self.cache,
            adapter_slots=slots,
            adapter_rows=fed.adapters,
            logits_indices=fed.rows,
            extents=fed.extents,
        )
        hidden = built.model(fed.ids, ctx)
        count = len(plan.logits_indices)
        extras.update(self._extras(plan, hidden[count:]))
        return built.model.head(hidden[:count]) if count else None

    def _sample(self, plan: StepPlan, fed: Fed, logits: Tensor, extras: dict[str, Any]) -> tuple[Sampled, Tensor]:
        """Choose tokens, and keep the last one of each slot; say in `extras` how many of each proposal stand. Return them, and `told`."""
        if (drafts := plan.extras.get("drafts")) is None:
            sampled = self._sampler.sample(logits, plan.sampling)
            slots = fed.slots[: len(sampled.ids)]
            told: Tensor = self._kernels.keep_last(sampled.ids, sampled.most, self._feed.last, slots)
            return sampled, told
        verified = self._sampler.verify(logits, plan.sampling, _proposed(plan, drafts))
        extras["accepted"] = verified.accepted.to("cpu", non_blocking=True)
        starts = self._feed.index(first_rows(drafts))
        last = verified.ids.index_select(0, starts + verified.accepted)
        self._feed.last.index_copy_(0, fed.slots.index_select(0, starts), last)
        return verified, torch.where(verified.valid, verified.ids, -1 - verified.ids)

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

    def _extras(self, plan: StepPlan, hidden: Tensor) -> dict[str, Any]:
        """What was asked for beside tokens, from the hidden states [P, H] of `more_rows`."""
        extras: dict[str, Any] = {}
        start = 0
        if (prompt := plan.extras.get("prompt")) is not None:
            targets, most = prompt
            start = len(targets)
            # A whole prompt's logits at once would take more memory than the model.
            chunks = zip(hidden[:start].split(_HEAD_ROWS), self._feed.index(targets).split(_HEAD_ROWS), strict=True)
            found = (logprobs_of(self._built.model.head(x), ids, most, (), self._kernels) for x, ids in chunks)
            extras["prompt"] = [part.host() for part in found]
        if (pool := plan.extras.get("pool")) is not None:
            sums = [hidden[start + first : start + stop].float().sum(0) for first, stop in pool.tolist()]
            extras["pooled"] = torch.stack(sums).cpu().numpy()
        return extras

    def _recorded(self) -> torch.Event | None:
        if self._built.device.type == "cpu":
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
