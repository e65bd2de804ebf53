"""Requests at a rate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp

from pegboard_bench.client import Target, ask
from pegboard_bench.prompts import Prompt
from pegboard_bench.samples import Sample

TOGETHER = 1024
"""Requests that are sent without a look at answers in between: those of an infinite rate should go out at once."""


@dataclass(frozen=True, slots=True)
class Extent:
    """When a run stops sending. requests: after so many. seconds: after so long. One of them at least; what is open is waited for."""

    requests: int | None = None
    seconds: float | None = None


async def run(
    session: aiohttp.ClientSession,
    target: Target,
    prompts: Iterator[Prompt],
    times: Iterator[float],
    extent: Extent,
    *,
    concurrency: int | None = None,
    done: Callable[[Sample], None] = lambda sample: None,
) -> tuple[list[Sample], float]:
    """Send requests at `times` (seconds from now) and return what became of each, in their order, and the seconds that all took.

    concurrency: requests that may be open at once; a later one is sent when another has ended, and its times count from there.
    done: told of each one that ended.
    """
    gate = asyncio.Semaphore(concurrency) if concurrency is not None else contextlib.nullcontext()
    began = time.perf_counter()

    async def one(prompt: Prompt, planned: float) -> Sample:
        async with gate:
            sample = await ask(session, target, prompt, planned)
        done(sample)
        return sample

    tasks: list[asyncio.Task[Sample]] = []
    unfinished: set[asyncio.Task[Sample]] = set()
    try:
        for number, (offset, prompt) in enumerate(zip(times, prompts, strict=False)):
            if number == extent.requests or (extent.seconds is not None and offset >= extent.seconds):
                break
            delay = began + offset - time.perf_counter()
            if delay > 0 or number % TOGETHER == TOGETHER - 1:
                await asyncio.sleep(max(delay, 0))
            if extent.requests is None and concurrency is not None and len(unfinished) >= concurrency:
                # Without a number of requests they must not pile up behind the gate.
                await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
            if extent.seconds is not None and time.perf_counter() - began >= extent.seconds:
                break
            task = asyncio.create_task(one(prompt, began + offset))
            unfinished.add(task)
            task.add_done_callback(unfinished.discard)
            tasks.append(task)
        samples = list(await asyncio.gather(*tasks))
    finally:
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    return samples, time.perf_counter() - began
