"""Runs steps in workers, one process for each rank."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pegboard import errors
from pegboard.errors import ConfigError, PegboardError
from pegboard.interfaces.executor import Executor, ExecutorDied
from pegboard.types import CachePlan, StepPlan, StepResult
from pegboard_engine.multiproc.doors import pack_doors
from pegboard_engine.multiproc.options import MultiprocOptions
from pegboard_engine.multiproc.process import WorkerProcess
from pegboard_engine.multiproc.values import pack

if TYPE_CHECKING:
    from torch import Tensor

    from pegboard.build import BuiltModel
    from pegboard.plugins.load import Registry

Packed = tuple[Any, Sequence[np.ndarray]]
Answers = list[tuple[str, Any]]
"""What each rank answers: ("done" or "failed", a value)."""


@dataclass(slots=True)
class _Flight:
    """A step in flight. numbers: of its message to each rank. error: why it could not be sent. answers: where they had to be read before
    it is collected.
    """

    handle: int
    numbers: Sequence[int] = ()
    error: Exception | None = None
    answers: Answers | None = None


class MultiprocExecutor(Executor):
    """The model is built, loaded and run in workers; this process holds its description only, and schedules while they compute.

    Every rank gets every message and answers it; what rank 0 answers is the result. Once a worker is lost all are ended, and
    whatever is asked raises ExecutorDied until `restart`.
    """

    depth = 2

    def __init__(self, options: MultiprocOptions | None = None) -> None:
        self._options = options or MultiprocOptions()
        self._workers: list[WorkerProcess] = []
        self._job: dict[str, Any] = {}
        self._built: BuiltModel | None = None
        self._lost: str | None = None
        self._last_handle = 0
        self._flying: deque[_Flight] = deque()
        # Of each slot in use, for workers that start again.
        self._adapters: dict[int, Packed] = {}

    def load(self, built: BuiltModel, cache: CachePlan, registry: Registry) -> None:
        """Start the workers and wait until each has loaded the model from where `built` was prepared from.

        Raises ConfigError for a model that was not prepared from a location or has its weights here already, and what the
        workers raise.
        """
        if not built.source:
            raise ConfigError(
                "a worker process cannot build a model that was made in this one", fix="use executor uniproc"
            )
        _refuse_loaded(built)
        source = dict(built.source)
        path = Path(source["location"]).expanduser()
        if path.exists():  # and shall be found after a change of folder
            source["location"] = str(path.absolute())
        options = source["options"]
        chosen = {kind: options[kind] for kind in ("platform", "attention", "quantizer")}
        self._job = {
            "doors": pack_doors(registry, chosen),
            "source": source,
            "cache": cache,
            "world": cache.layout.shard[1],
            "threads": torch.get_num_threads(),
        }
        self._built = built
        self._start()

    def submit(self, plan: StepPlan) -> int:
        workers = self._alive()
        if len(self._flying) >= self.depth:
            raise RuntimeError(f"{self.depth} steps are in flight already: collect one first")
        self._last_handle += 1
        flight = _Flight(self._last_handle)
        try:
            flight.numbers = self._send(workers, "step", pack(plan))
        except (TypeError, OSError) as error:  # it belongs to whoever collects the step
            flight.error = error
        self._flying.append(flight)
        return flight.handle

    def collect(self, handle: int) -> StepResult:
        workers = self._alive()
        if not self._flying or self._flying[0].handle != handle:
            raise RuntimeError(f"there is no step {handle} to collect")
        flight = self._flying[0]
        self._await(workers, flight)
        self._flying.popleft()
        if flight.error is not None:
            raise flight.error
        assert flight.answers is not None
        for kind, value in flight.answers:
            if kind == "failed":
                raise _step_error(value)
        result = flight.answers[0][1]
        if not isinstance(result, StepResult):
            raise self._give_up(workers[0].died(f"answered with garbage: a {type(result).__name__} for a step"))
        return result

    def update_weights(self, version: int) -> None:
        """Read the weights again from where they came from, into the same memory.

        Raises ConfigError where they were changed in this process, which no worker would see, and what the workers raise.
        """
        workers = self._alive()
        assert self._built is not None
        _refuse_loaded(self._built)
        self._ask(workers, "reload", pack(version), self._options.start_timeout)

    def load_adapter(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
        packed = pack((slot, dict(tensors), dict(config)))
        self._ask(self._alive(), "load_adapter", packed, self._options.step_timeout)
        self._adapters[slot] = packed

    def unload_adapter(self, slot: int) -> None:
        self._adapters.pop(slot, None)
        self._ask(self._alive(), "unload_adapter", pack(slot), self._options.step_timeout)

    def restart(self) -> None:
        if self._built is None:
            raise _not_loaded()
        self._end()
        self._flying.clear()
        self._lost = None
        self._start()
        for packed in self._adapters.values():
            self._ask(self._workers, "load_adapter", packed, self._options.step_timeout)

    def close(self) -> None:
        workers, self._workers = self._workers, []
        self._flying.clear()
        self._lost = None
        self._built = None
        self._adapters.clear()
        for worker in workers:
            worker.stop(self._options.stop_timeout)

    def _start(self) -> None:
        deadline = time.monotonic() + self._options.start_timeout
        level = logging.getLogger("pegboard").getEffectiveLevel()
        try:
            for rank in range(self._job["world"]):
                self._workers.append(WorkerProcess(rank))
            numbers = []
            for worker in self._workers:
                job = {**self._job, "rank": worker.rank, "log_level": level}
                numbers.append(worker.send("load", pack(job), self._options.step_timeout))
            for worker, number in zip(self._workers, numbers, strict=True):
                kind, value = _answer(worker, number, max(0.0, deadline - time.monotonic()))
                if kind == "failed":
                    raise _load_error(value)
        except ExecutorDied as error:
            raise self._give_up(error) from None
        except BaseException:
            self._end()
            raise

    def _send(self, workers: Sequence[WorkerProcess], kind: str, packed: Packed, *, own: bool = False) -> list[int]:
        """Send a message to each worker; return their numbers."""
        numbers = []
        for worker in workers:
            try:
                numbers.append(worker.send(kind, packed, self._options.step_timeout, own=own))
            except ExecutorDied as error:
                raise self._give_up(error) from None
            except OSError as error:
                if worker is workers[0]:
                    raise
                # The others have it already.
                raise self._give_up(worker.died(f"could not be sent a message: {error}")) from error
        return numbers

    def _receive(self, workers: Sequence[WorkerProcess], numbers: Sequence[int], timeout: float) -> Answers:
        try:
            return [_answer(worker, number, timeout) for worker, number in zip(workers, numbers, strict=True)]
        except ExecutorDied as error:
            raise self._give_up(error) from None

    def _await(self, workers: Sequence[WorkerProcess], flight: _Flight) -> None:
        """Read the answers of the oldest step whose answers were not read."""
        if flight.error is None and flight.answers is None:
            flight.answers = self._receive(workers, flight.numbers, self._options.step_timeout)

    def _ask(self, workers: Sequence[WorkerProcess], kind: str, packed: Packed, timeout: float) -> None:
        """Have something done by all workers, after the steps in flight. Raises what they raised."""
        for flight in self._flying:
            self._await(workers, flight)
        # What is asked for seldom may be large: it gets memory that is given back.
        numbers = self._send(workers, kind, packed, own=True)
        for answer, value in self._receive(workers, numbers, timeout):
            if answer == "failed":
                raise _load_error(value)

    def _give_up(self, error: ExecutorDied) -> ExecutorDied:
        """End what is left of the workers; from now on all fails until `restart`."""
        self._lost = str(error)
        self._end()
        return error

    def _end(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()

    def _alive(self) -> list[WorkerProcess]:
        if self._lost is not None:
            raise ExecutorDied(self._lost)
        if not self._workers:
            raise _not_loaded()
        return self._workers


def _answer(worker: WorkerProcess, number: int, timeout: float) -> tuple[str, Any]:
    """Wait for the answer to message `number`; those to earlier ones, for which Ctrl-C ended the wait, are dropped."""
    deadline = time.monotonic() + timeout
    while True:
        message = worker.receive(max(0.0, deadline - time.monotonic()))
        match message.kind, message.value:
            case "done" | "failed" as kind, (int(answered), value) if answered <= number:
                if answered == number:
                    return kind, value
            case kind, _:
                raise worker.died(f"answered with garbage: a {kind!r} that nobody waits for")


def _not_loaded() -> RuntimeError:
    return RuntimeError("the executor has no model: it is not loaded, or closed")


def _refuse_loaded(built: BuiltModel) -> None:
    if not built.pending:
        raise ConfigError(
            "the model has its weights in this process, and a worker would not see a change to them",
            fix="use executor uniproc, or prepare the model without loading it",
        )


def _load_error(told: Mapping[str, Any]) -> Exception:
    """Return what a worker raised: of the same class where a user can mend it."""
    kind = getattr(errors, str(told["type"]), None)
    if isinstance(kind, type) and issubclass(kind, PegboardError):
        return kind(told["message"], fix=told["fix"])
    return _step_error(told)


def _step_error(told: Mapping[str, Any]) -> RuntimeError:
    error = RuntimeError(f"{told['type']}: {told['message']}")
    error.add_note(f"In the worker:\n{told['trace']}")
    return error
