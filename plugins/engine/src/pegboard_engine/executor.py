"""Runs steps in this process."""

from __future__ import annotations

from pegboard.build import BuiltModel
from pegboard.interfaces.executor import Executor
from pegboard.types import KVLayout, StepPlan, StepResult
from pegboard_engine.runner import Runner


class UniprocExecutor(Executor):
    """One step at a time, in the calling thread; `submit` has computed it when it returns."""

    depth = 1

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._last_handle = 0
        self._result: StepResult | Exception | None = None

    def load(self, built: BuiltModel, layout: KVLayout, num_pages: int) -> None:
        self._runner = Runner(built, layout, num_pages)

    def submit(self, plan: StepPlan) -> int:
        if self._runner is None:
            raise RuntimeError("the executor has no model: it is not loaded, or closed")
        if self._result is not None:
            raise RuntimeError("a step is in flight already: collect it first")
        self._last_handle += 1
        try:
            self._result = self._runner.run(plan)
        except Exception as error:  # it belongs to whoever collects the step
            self._result = error
        return self._last_handle

    def collect(self, handle: int) -> StepResult:
        result, self._result = self._result, None
        if result is None or handle != self._last_handle:
            self._result = result
            raise RuntimeError(f"there is no step {handle} to collect")
        if isinstance(result, Exception):
            raise result
        return result

    def update_weights(self, version: int) -> None:
        if self._runner is None:
            raise RuntimeError("the executor has no model: it is not loaded, or closed")
        self._runner.update_weights(version)

    def close(self) -> None:
        self._runner = self._result = None
