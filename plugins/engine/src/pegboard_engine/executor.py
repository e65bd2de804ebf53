"""Runs steps in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from pegboard.build import BuiltModel
from pegboard.interfaces.executor import Executor
from pegboard.plugins.load import Registry
from pegboard.types import CachePlan, StepPlan, StepResult
from pegboard_engine.feed import computes_apart
from pegboard_engine.fits import ran_out
from pegboard_engine.rehearsal import Rehearsed
from pegboard_engine.runner import Runner, Started

if TYPE_CHECKING:
    from torch import Tensor


class UniprocExecutor(Executor):
    """Steps run in the calling thread.

    On a device that computes on its own, `submit` returns when the work is given to it, and two steps can be in flight. On the host
    a step is computed when `submit` returns: a second thread would only take the interpreter from the one that computes.
    """

    depth = 1

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._rehearsal: Rehearsed | None = None
        self._last_handle = 0
        self._flying: deque[tuple[int, Started | Exception]] = deque()

    def load(self, built: BuiltModel, cache: CachePlan, registry: Registry) -> None:
        self._rehearsal = Rehearsed(built, cache)
        try:
            self._runner = Runner(built.load(), cache, registry)
        except BaseException as error:
            self.close()
            if isinstance(error, torch.OutOfMemoryError):
                raise ran_out(built, cache) from error
            raise
        self._rehearsal.watched()
        self.depth = 2 if computes_apart(built) else 1

    def submit(self, plan: StepPlan) -> int:
        runner = self._loaded()
        if len(self._flying) >= self.depth:
            raise RuntimeError(f"{self.depth} steps are in flight already: collect one first")
        self._last_handle += 1
        try:
            started: Started | Exception = runner.start(plan)
        except Exception as error:  # it belongs to whoever collects the step
            started = error
        self._flying.append((self._last_handle, started))
        return self._last_handle

    def collect(self, handle: int) -> StepResult:
        if not self._flying or self._flying[0][0] != handle:
            raise RuntimeError(f"there is no step {handle} to collect")
        _, started = self._flying.popleft()
        if isinstance(started, Exception):
            raise started
        return started.wait()

    def update_weights(self, version: int) -> None:
        self._loaded().update_weights(version)

    def load_adapter(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
        self._loaded().load_adapter(slot, tensors, config)

    def unload_adapter(self, slot: int) -> None:
        self._loaded().unload_adapter(slot)

    def prepare(self) -> bool:
        return self._loaded().prepare()

    def expert_tokens(self) -> list[list[int]] | None:
        counts = self._loaded().expert_counts
        return None if counts is None else counts.read()

    def close(self) -> None:
        if self._rehearsal is not None:
            self._rehearsal.close()
        self._runner = self._rehearsal = None
        self._flying.clear()

    def _loaded(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the executor has no model: it is not loaded, or closed")
        return self._runner
