"""The loop between asyncio and the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import RequestOutput
from pegboard.types import SamplingParams
from pegboard_server.loop import EngineDead, EngineLoop, Job
from pegboard_server.served import Served


def job(name: str, words: str, **params: Any) -> Job:
    return Job(name, list(words.encode()), SamplingParams(**{"max_tokens": 50, **params}))


@asynccontextmanager
async def started(served: Served) -> AsyncIterator[tuple[EngineLoop, Any]]:
    served.loop.start()
    try:
        yield served.loop, served.loop._engine
    finally:
        await served.loop.stop()


def ended(outputs: list[RequestOutput]) -> list[tuple[str, int, str | None]]:
    return sorted((o.request_id, o.index, o.finish_reason) for o in outputs if o.finish_reason)


def test_outputs_come_in_order_and_to_their_stream(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, engine):
            first, second = await asyncio.gather(
                loop.open([job("a", "say:one"), job("b", "say:two", n=2)]), loop.open([job("c", "say:three")])
            )
            outputs = [output async for output in first]
            texts: dict[tuple[str, int], str] = {}
            for output in outputs:
                texts[output.request_id, output.index] = texts.get((output.request_id, output.index), "") + output.text
            assert texts == {("a", 0): "one", ("b", 0): "two", ("b", 1): "two"}
            assert "".join([output.text async for output in second]) == "three"
            assert loop.num_open == 0
            assert await first.next() == []
        assert engine.closed

    asyncio.run(run())


def test_a_closed_stream_aborts_what_is_left(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, engine):
            stream = await loop.open([job("a", "!long", max_tokens=100000), job("b", "say:x")])
            async for output in stream:
                if output.request_id == "b" and output.finish_reason:
                    break
            loop.close(stream)
            loop.close(stream)
            await loop.call(lambda engine: engine.stats())
            assert engine.aborted == ["a"]
            assert loop.num_open == 0

    asyncio.run(run())


def test_all_or_none_are_added(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, engine):
            with pytest.raises(ConfigError, match="the prompt has 300 tokens"):
                await loop.open([job("a", "!wait"), job("b", "x" * 300), job("c", "!wait")])
            assert engine.aborted == ["a"]
            assert not engine.requests
            assert loop.num_open == 0

    asyncio.run(run())


def test_a_cancelled_opening_leaves_nothing(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start({"pace": 0.05})) as (loop, engine):
            busy = await loop.open([job("busy", "!long", max_tokens=100000)])
            await busy.next()
            task = asyncio.create_task(loop.open([job("a", "!wait")]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await loop.call(lambda engine: engine.stats())
            assert list(engine.requests) == ["busy"]
            loop.close(busy)

    asyncio.run(run())


def test_a_step_that_raises_fails_what_is_there_and_the_loop_goes_on(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, _):
            stream = await loop.open([job("a", "!wait", n=2), job("b", "!raise")])
            assert ended([output async for output in stream]) == [
                ("a", 0, "error"),
                ("a", 1, "error"),
                ("b", 0, "error"),
            ]
            assert loop.alive
            again = await loop.open([job("c", "say:ok")])
            assert "".join([output.text async for output in again]) == "ok"

    asyncio.run(run())


def test_an_engine_that_keeps_raising_is_dead(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, engine):
            stream = await loop.open([job("a", "!die")])
            assert ended([output async for output in stream]) == [("a", 0, "error")]
            for number in range(3):
                try:
                    stream = await loop.open([job(f"x{number}", "say:a")])
                except EngineDead:
                    break
                assert ended([output async for output in stream])[0][2] == "error"
            while loop.alive:
                await asyncio.sleep(0.01)
            with pytest.raises(EngineDead):
                await loop.call(lambda engine: engine.stats())
        assert engine.closed

    asyncio.run(run())


def test_nobody_waits_for_an_engine_that_cannot_end_its_requests(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, _):
            stream = await loop.open([job("a", "!raise !stuck"), job("b", "!wait")])
            outputs = await _all(stream)
            assert ended(outputs) == [("a", 0, "error"), ("b", 0, "error")]
            while loop.alive:
                await asyncio.sleep(0.01)

    asyncio.run(run())


async def _all(stream: Any) -> list[RequestOutput]:
    return [output async for output in stream]


def test_everything_can_be_ended(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, engine):
            streams = [await loop.open([job(name, "!wait", n=2)]) for name in "ab"]
            loop.end_all("closing")
            for stream in streams:
                outputs = await stream.next()
                assert [(o.index, o.finish_reason, o.error) for o in outputs] == [
                    (0, "abort", "closing"),
                    (1, "abort", "closing"),
                ]
                assert await stream.next() == []
            await loop.call(lambda engine: engine.stats())
            assert sorted(engine.aborted) == ["a", "b"]

    asyncio.run(run())


def test_an_idle_engine_is_not_stepped(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, engine):
            stream = await loop.open([job("a", "say:abc")])
            _ = [output async for output in stream]
            steps = engine.steps
            await asyncio.sleep(0.05)
            assert engine.steps == steps

    asyncio.run(run())


def test_commands_return_and_raise(start: Callable[..., Served]) -> None:
    async def run() -> None:
        async with started(start()) as (loop, _):
            assert await loop.call(lambda engine: engine.max_model_len) == 256
            with pytest.raises(ZeroDivisionError):
                await loop.call(lambda engine: 1 // 0)
        with pytest.raises(EngineDead):
            await loop.call(lambda engine: 1)

    asyncio.run(run())
