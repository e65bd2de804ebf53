"""The engine behind asyncio: one thread owns it and steps it, the event loop gets its outputs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from pegboard.interfaces.engine import Engine, EngineStats, RequestOptions, RequestOutput
from pegboard.types import SamplingParams
from pegboard_server.metrics import Metrics
from pegboard_server.stream import Stream, Track

log = logging.getLogger("pegboard.server")

T = TypeVar("T")
Command = Callable[[Engine], None]

PAUSE = 0.001
"""Seconds between two steps of an engine that has requests but nothing to compute (all of them wait for a grammar, say)."""

MAX_FAILURES = 3
"""Steps in a row that may raise before the engine counts as broken."""


class EngineDead(RuntimeError):
    """The engine's thread has ended; nothing can be asked of it any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request to the engine. prompt: token ids, or text."""

    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams
    options: RequestOptions = field(default_factory=RequestOptions)


class EngineLoop:
    """Runs a loaded engine.

    Everything public but `stats` and `alive` belongs to the event loop that called `start`. The engine belongs to the thread: what
    is to be done with it is a command, run between two steps.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._wake = threading.Condition()
        self._commands: list[Command] = []
        self._stopping = False
        self._dead: Exception | None = None
        self._thread: threading.Thread | None = None
        self._tracks: dict[str, Track] = {}
        self._running: dict[str, set[int]] = {}  # the thread's own: requests of the engine -> answers that go on

    @property
    def alive(self) -> bool:
        """Whether the engine can take requests."""
        return self._thread is not None and self._dead is None and not self._stopping

    @property
    def num_open(self) -> int:
        """Requests that have not come to their end."""
        return len(self._tracks)

    def stats(self) -> EngineStats:
        """Return the engine's numbers. From any thread."""
        return self._engine.stats()

    def start(self) -> None:
        """Start the thread. Outputs go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="pegboard-engine", daemon=True)
        self._thread.start()

    async def open(self, jobs: Sequence[Job]) -> Stream:
        """Give requests to the engine, all or none, and return the stream of their outputs.

        Raises what the engine's `add_request` raises, EngineDead when there is no engine. Whoever opens a stream closes it.
        """
        stream = Stream({job.request_id: job.params.n for job in jobs})
        now = time.monotonic()
        for job in jobs:
            self._tracks[job.request_id] = Track(stream, now, job.params.n)
        try:
            await self.call(lambda engine: self._add(engine, jobs))
        except BaseException:
            self._drop(stream)
            raise
        return stream

    def close(self, stream: Stream, cause: str = "disconnect") -> None:
        """End what is left of a stream's requests. Safe to call twice. cause: what the metrics count it as."""
        if count := self._drop(stream):
            self._metrics.aborted(cause, count)

    def _drop(self, stream: Stream) -> int:
        """Forget a stream's requests and end them in the engine; return how many went on."""
        ids = [request_id for request_id in stream.unfinished if self._tracks.pop(request_id, None) is not None]
        if ids:
            self._post(lambda engine: self._abort(engine, ids))
        return len(ids)

    def end_all(self, error: str) -> None:
        """End every request, its stream being told `error`."""
        tracks, self._tracks = self._tracks, {}
        for request_id, track in tracks.items():
            for index in sorted(track.stream.unfinished.get(request_id, ())):
                track.stream.push(RequestOutput(request_id, index=index, finish_reason="abort", error=error))
        self._metrics.aborted("shutdown", len(tracks))
        self._post(lambda engine: self._abort(engine, list(tracks)))

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run `function` with the engine between two steps and return what it returns."""
        future: asyncio.Future[T] = self._loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.done():  # whoever waited was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def command(engine: Engine) -> None:
            try:
                result = function(engine)
            except Exception as error:
                self._tell(settle, None, error)
            else:
                self._tell(settle, result, None)

        if not self._post(command):
            raise EngineDead("the engine is gone")
        return await future

    async def stop(self) -> None:
        """Close the engine and end the thread. Safe to call twice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _post(self, command: Command) -> bool:
        """Queue a command; False when nobody will run it."""
        with self._wake:
            if self._dead is not None or self._stopping or self._thread is None:
                return False
            self._commands.append(command)
            self._wake.notify()
            return True

    def _deliver(self, now: float, outputs: Sequence[RequestOutput]) -> None:
        """Hand the outputs of a step, collected at `now`, to their streams."""
        for output in outputs:
            track = self._tracks.get(output.request_id)
            if track is None:  # closed meanwhile
                continue
            self._metrics.output(track, output, now)
            track.stream.push(output)
            if output.request_id not in track.stream.unfinished:
                del self._tracks[output.request_id]

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            log.critical("the engine has died", exc_info=error)
            with self._wake:
                self._dead = error
                commands, self._commands = self._commands, []
            for command in commands:
                with contextlib.suppress(EngineDead):
                    command(_GONE)
            self._tell_failures()
        finally:
            try:
                self._engine.close()
            except Exception as error:
                log.error("the engine could not be closed", exc_info=error)

    def _work(self) -> None:
        engine, busy, idle, failures, steps = self._engine, False, True, 0, -1
        while True:
            with self._wake:
                while not (busy or idle or self._commands or self._stopping):
                    self._wake.wait()
                commands, self._commands = self._commands, []
                stopping = self._stopping
            for command in commands:
                command(engine)
            if stopping:
                return
            busy = engine.has_unfinished()
            if not busy:
                idle = engine.prepare()
                continue
            idle = True
            try:
                outputs, failures = engine.step(), 0
            except Exception as error:
                failures += 1
                log.error("a step failed, and all requests with it", exc_info=error)
                if failures >= MAX_FAILURES:
                    raise
                self._fail(engine)
                continue
            if outputs:
                self._keep(outputs)
                self._tell(self._deliver, time.monotonic(), outputs)
                continue
            done, steps = steps, engine.stats().steps
            if done == steps:
                with self._wake:
                    if not self._commands:
                        self._wake.wait(PAUSE)

    def _add(self, engine: Engine, jobs: Sequence[Job]) -> None:
        for count, job in enumerate(jobs):
            try:
                engine.add_request(job.request_id, job.prompt, job.params, *_given(job.options))
            except BaseException:
                self._abort(engine, [added.request_id for added in jobs[:count]])
                raise
            self._running[job.request_id] = set(range(job.params.n))

    def _abort(self, engine: Engine, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if self._running.pop(request_id, None) is not None:
                engine.abort(request_id)

    def _keep(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            if output.finish_reason is not None and (left := self._running.get(output.request_id)) is not None:
                left.discard(output.index)
                if not left:
                    del self._running[output.request_id]

    def _fail(self, engine: Engine) -> None:
        """Tell all requests that they have failed, then end them: an engine that cannot even do that is dead, but nobody waits."""
        self._tell_failures()
        running, self._running = list(self._running), {}
        for request_id in running:
            engine.abort(request_id)

    def _tell_failures(self) -> None:
        outputs = [
            RequestOutput(request_id, index=index, finish_reason="error", error="the engine failed")
            for request_id, indices in self._running.items()
            for index in sorted(indices)
        ]
        self._tell(self._deliver, time.monotonic(), outputs)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the event loop is closed: nobody waits for outputs any more
            log.debug("outputs came after the end of the event loop")


class _Gone:
    """Stands where a dead engine was, so that commands that wait end with an error."""

    def __getattr__(self, name: str) -> object:
        raise EngineDead("the engine is gone")


_GONE = cast("Engine", _Gone())


def _given(options: RequestOptions) -> tuple[RequestOptions, ...]:
    return () if options == RequestOptions() else (options,)
