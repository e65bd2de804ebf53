"""The steps that an executor has been given and has not answered yet, and what becomes of their requests when one fails."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pegboard.interfaces.executor import Executor, ExecutorDied
from pegboard.types import StepPlan
from pegboard_engine.outputs import StepOutputs
from pegboard_engine.reading import Ends, Reader
from pegboard_engine.request import Request, State
from pegboard_engine.scheduler import Schedule
from pegboard_engine.table import Table

log = logging.getLogger("pegboard.engine")

_RETRY_SECONDS = 0.5


@dataclass(slots=True)
class _Flight:
    """A step that was submitted."""

    handle: int
    schedule: Schedule


class Flights:
    """Submits steps, collects them in order, and starts an executor again that died.

    restart_due: whether it died and has not been started again. num_tokens: that all results added to outputs.
    wait: waits for so many seconds, or until something happens.
    """

    def __init__(
        self, executor: Executor, table: Table, reader: Reader, ends: Ends, wait: Callable[[float], object]
    ) -> None:
        self._executor = executor
        self._table = table
        self._reader = reader
        self._ends = ends
        self._wait = wait
        self._flying: deque[_Flight] = deque()
        self.restart_due = False
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def has_room(self) -> bool:
        """Whether another step may be submitted before one is collected."""
        return len(self._flying) < self._executor.depth

    def submit(self, plan: StepPlan, schedule: Schedule, outputs: StepOutputs) -> None:
        """Start a step. One that cannot be started ends its requests, which `outputs` is told. Raises ExecutorDied."""
        try:
            self._flying.append(_Flight(self._executor.submit(plan), schedule))
        except ExecutorDied:
            raise
        except Exception as error:
            self._fail(schedule, error, outputs)

    def collect(self, outputs: StepOutputs) -> None:
        """Wait for the oldest step and tell `outputs` what it added. Raises ExecutorDied."""
        flight = self._flying[0]
        try:
            # An interrupt in this wait leaves the step where it is, to be collected by the next one.
            result = self._executor.collect(flight.handle)
        except ExecutorDied:
            raise
        except Exception as error:
            self._flying.popleft()
            self._fail(flight.schedule, error, outputs)
            return
        self._flying.popleft()
        self.num_tokens += self._reader.read(flight.schedule, result, outputs)

    def drain(self, outputs: StepOutputs) -> None:
        """Collect all steps. Raises ExecutorDied."""
        while self._flying:
            self.collect(outputs)

    def lose(self, error: ExecutorDied, outputs: StepOutputs) -> None:
        """End whatever ran: its keys are lost. This is told before the executor is started again, which takes a while."""
        log.error("the executor died: %s; what ran fails, and it is started again", error)
        self._flying.clear()
        # What the worker wrote last stands behind the first line, and in the log.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        for request in self._requests(self._table.running.tolist()):
            request.error = f"the process that ran the model ended: {reason}"
            output = self._ends.end(request, State.FAILED)
            output.lost = True
            outputs.append(output)
        self.restart_due = True

    def restart(self) -> None:
        """Start the executor again. One that does not start is tried again when the next request finds it dead."""
        self.restart_due = False
        try:
            self._executor.restart()
        except ExecutorDied as again:
            log.error("the executor did not start again: %s", again)
            self._wait(_RETRY_SECONDS)

    def forget(self) -> None:
        """Let go of all steps: nobody wants their results."""
        self._flying.clear()
        self.restart_due = False

    def _fail(self, schedule: Schedule, error: Exception, outputs: StepOutputs) -> None:
        """End the requests of a step that raised; those that wait are not touched."""
        alive = self._table.generation[schedule.slots] == schedule.generations
        requests = self._requests(schedule.slots[alive].tolist())
        log.error("a step failed, and its %d requests with it", len(requests), exc_info=error)
        for request in requests:
            request.error = f"the step failed: {type(error).__name__}: {error}"
            outputs.append(self._ends.end(request, State.FAILED))

    def _requests(self, slots: Iterable[int]) -> list[Request]:
        return [self._table.request(slot) for slot in slots]
