"""A server abused by 2,000 requests answers or refuses each one, holds nothing afterwards, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.chaos import Report, Server, chaos, server_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONTEXT = 256
CACHE = "160KB"
"""616 tokens: a few requests, so that some are preempted and some wait until they are given up."""


@contextmanager
def serving(model: Path, log: Path, *, kill: bool) -> Iterator[Server]:
    """Serve, and at the end want status 0."""
    options = server_options(kill=kill, memory=CACHE)
    server = Server(str(model), [*options, "--max-model-len", str(CONTEXT)], log)
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0, log.read_text()[-2000:]


def abused(server: Server, requests: int, *, kill: float | None = None) -> Report:
    """Return what happened, of which nothing may be a problem."""
    report = asyncio.run(chaos(server, requests=requests, seconds=None, clients=48, longest=CONTEXT, seed=1, kill=kill))
    assert not report.problems, "\n".join(report.problems[:20])
    assert report.requests == requests
    assert report.metrics["kv_pages_held"] == report.metrics["requests_running"] == 0
    return report


def test_two_thousand_requests(toy_model: Path, tmp_path: Path) -> None:
    with serving(toy_model, tmp_path / "log", kill=False) as server:
        report = abused(server, 2000)
    endings = {outcome.rpartition(": ")[2] for outcome in report.outcomes}
    assert {"200", "400", "left"} <= endings
    assert report.metrics["preemptions_total"] > 0
    # Caches of allocators settle in the first half; a leak of one page of host memory a request would be 4 MB.
    assert report.growth < 32


def test_workers_that_are_killed(toy_model: Path, tmp_path: Path) -> None:
    with serving(toy_model, tmp_path / "log", kill=True) as server:
        report = abused(server, 400, kill=2)
    assert report.kills > 0
    assert "whole: 200" in report.outcomes
