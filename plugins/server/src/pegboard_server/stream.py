"""Outputs of requests on their way to one consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from pegboard.interfaces.engine import RequestOutput


class Stream:
    """Belongs to the event loop. unfinished: request -> indices of its answers that go on."""

    def __init__(self, answers: Mapping[str, int]) -> None:
        self.unfinished: dict[str, set[int]] = {name: set(range(count)) for name, count in answers.items()}
        self._outputs: list[RequestOutput] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: RequestOutput) -> None:
        """Add an output; one of an answer that has ended is dropped."""
        left = self.unfinished.get(output.request_id)
        if left is None or output.index not in left:
            return
        if output.finish_reason is not None:
            left.discard(output.index)
            if not left:
                del self.unfinished[output.request_id]
        self._outputs.append(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> list[RequestOutput]:
        """Return what has come since the last call, waiting for something; empty at the end of all answers."""
        while not self._outputs and self.unfinished:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        outputs, self._outputs = self._outputs, []
        return outputs

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        while outputs := await self.next():
            for output in outputs:
                yield output


@dataclass(slots=True)
class Track:
    """Where the outputs of a request go, and when they came. Times are of time.monotonic.

    first, last: of the first and the latest output with tokens, for each answer; 0 before.
    """

    stream: Stream
    arrival: float
    answers: int
    first: float = 0.0
    last: dict[int, float] | None = None
