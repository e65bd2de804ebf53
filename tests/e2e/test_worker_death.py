"""The process that runs the model is killed under a server: what ran fails as clients expect it, and nothing else."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import openai
import pytest

from benchmarks.chaos import Server

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {"model": "toy", "prompt": [20, 21, 22], "max_tokens": 240, "ignore_eos": True, "temperature": 0}
SHORT = {**LONG, "prompt": [30, 31], "max_tokens": 9}


@pytest.fixture
def server(toy_model: Path, tmp_path: Path) -> Iterator[Server]:
    options = ["--platform", "cpu", "--dtype", "float32", "--threads", "1", "--kv-memory", "4MB", "--name", "toy"]
    made = Server(str(toy_model), [*options, "--set", "executor=multiproc"], tmp_path / "log")

    async def ready() -> None:
        async with aiohttp.ClientSession(made.url) as session:
            await made.ready(session)

    asyncio.run(ready())
    yield made
    assert made.stop() == 0, (tmp_path / "log").read_text()


def until_running(client: httpx.Client, count: int, seconds: float = math.inf) -> bool:
    """Return True as soon as so many requests run, False after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if f"\npegboard_requests_running {count}\n" in client.get("/metrics").text:
            return True
        time.sleep(0.01)
    return False


def frozen_with_two(server: Server, client: httpx.Client, pool: ThreadPoolExecutor) -> tuple[int, Any, Any]:
    """Stop the worker while it runs two requests; return it, the whole answer to come, and the stream that has begun."""
    (worker,) = server.workers()
    for _ in range(20):
        whole = pool.submit(client.post, "/v1/completions", json=LONG)
        begun = client.stream("POST", "/v1/completions", json={**LONG, "prompt": [25], "stream": True})
        lines = begun.__enter__().iter_lines()
        assert next(lines).startswith("data: {")
        os.kill(worker, signal.SIGSTOP)
        if until_running(client, 2, seconds=5):
            return worker, whole, (begun, lines)
        os.kill(worker, signal.SIGCONT)  # one of them had ended
        whole.result()
        begun.__exit__(None, None, None)
    raise AssertionError("the requests are over too soon")


def test_what_ran_fails_and_what_comes_is_answered(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=500) as client, ThreadPoolExecutor() as pool:
        before = client.post("/v1/completions", json=SHORT).json()["choices"][0]["text"]
        worker, whole, (begun, lines) = frozen_with_two(server, client, pool)
        waits = pool.submit(client.post, "/v1/completions", json=SHORT)
        os.kill(worker, signal.SIGKILL)

        response = whole.result()
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
        assert str(worker) not in response.text  # what happened inside is for the log
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        begun.__exit__(None, None, None)
        assert json.loads(events[-2])["error"] == error
        assert events[-1] == "[DONE]"
        assert not any("error" in event for event in events[:-2])

        assert waits.result().json()["choices"][0]["text"] == before
        assert client.get("/ready").status_code == client.get("/health").status_code == 200
        assert client.post("/v1/completions", json=SHORT).json()["choices"][0]["text"] == before
        assert until_running(client, 0)
        assert "\npegboard_kv_pages_held 0\n" in client.get("/metrics").text
        (another,) = server.workers()
        assert another != worker
        assert f"worker 0 (process {worker}) was ended by SIGKILL" in server.log.read_text()


def test_the_openai_client_sends_again_what_was_lost(server: Server) -> None:
    with (
        httpx.Client(base_url=server.url, timeout=500) as client,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as patient,
        ThreadPoolExecutor() as pool,
    ):
        worker, whole, (begun, lines) = frozen_with_two(server, client, pool)
        os.kill(worker, signal.SIGKILL)
        assert whole.result().status_code == 503
        assert "service_unavailable" in "".join(lines)
        begun.__exit__(None, None, None)
        body = {"ignore_eos": True}
        answer = patient.completions.create(model="toy", prompt=[30, 31], max_tokens=9, extra_body=body)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 9
        # One that is killed while nothing runs is found dead by the next request.
        (another,) = server.workers()
        os.kill(another, signal.SIGKILL)
        stream = patient.completions.create(model="toy", prompt=[30, 31], max_tokens=9, extra_body=body, stream=True)
        assert [choice.finish_reason for chunk in stream for choice in chunk.choices][-1] == "length"
