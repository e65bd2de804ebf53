"""`peg bench serve` against `peg serve`: every request is answered with as many tokens as it asked for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.chaos import Server, server_options

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    made = Server(str(toy_model), [*server_options(kill=False, memory="1MB"), "--name", "toy"], log)

    async def ready() -> None:
        async with aiohttp.ClientSession(made.url) as session:
            await made.ready(session)

    asyncio.run(ready())
    yield made
    assert made.stop() == 0, log.read_text()


def bench(server: Server, *options: str) -> Any:
    command = [sys.executable, "-m", "pegboard", "bench", "serve", server.url, "--json", "-", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_sweep(server: Server, endpoint: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"what is {n}?", "max_tokens": 3 + n}) + "\n" for n in range(5)))
    sent = ["--prompts", str(prompts), "--body", '{"ignore_eos": true}']
    told = bench(server, "--endpoint", endpoint, "--rate", "50,inf", "--requests", "10", *sent)
    assert told["model"] == "toy"
    for run in told["runs"]:
        assert (run["completed"], run["failures"]) == (10, {})
        assert run["output_tokens_counted_by"] == "server"
        assert run["output_tokens"] == 2 * sum(range(3, 8))


def test_token_ids(server: Server) -> None:
    sizes = ["--input-tokens", "5:9", "--output-tokens", "6", "--body", '{"prompt": [20, 21, 22]}']
    (run,) = bench(server, "--requests", "30", "--max-concurrency", "8", "--goodput", "e2el:600000", *sizes)["runs"]
    assert (run["input_tokens"], run["output_tokens"], run["goodput"]["requests"]) == (90, 180, 30)
    # A piece of an answer is never less than a token.
    assert run["peak_concurrency"] <= 8
