"""A server abused: requests of every kind, good and bad, clients that go away, a cache that is too small, workers that are killed.

    python benchmarks/chaos.py MODEL [--requests 2000 | --minutes 10] [--clients 48] [--kill [SECONDS]] [--seed 0]

Starts `peg serve MODEL` as a process of its own, and at the end wants: every request answered or failed as OpenAI's clients expect it;
no page, request or connection held; memory that stopped growing; a server that still serves, and ends with status 0 when it is told to.
With --kill the model runs in a worker process, which is killed now and then: what runs then may fail with 503, and nothing else.
Needs Linux, and aiohttp beside pegboard-server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CLEAN = (200, 400, 413, 422, 429, 503, 504)
"""Statuses that a healthy server under load may answer with."""
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
SETTLE = 300.0
"""Seconds until nothing may be held any more."""


@dataclass(slots=True)
class Report:
    """What happened. outcomes: by kind of request and how it ended. problems: what should not have been. rss: MB of the
    server's own process over time; workers: of its workers.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    workers: list[float] = field(default_factory=list)
    kills: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """All that were sent."""
        return sum(self.outcomes.values())

    @property
    def growth(self) -> float:
        """MB by which the second half of the samples lies above the second quarter, in the mean."""
        quarter = max(len(self.rss) // 4, 1)
        before, after = self.rss[quarter : 2 * quarter] or self.rss, self.rss[-quarter:]
        return sum(after) / len(after) - sum(before) / len(before)


@dataclass(frozen=True, slots=True)
class Case:
    """A request. leave: where its client goes away: after so many seconds, or so many pieces of the answer. wanted: the statuses."""

    kind: str
    path: str
    body: dict[str, Any] | bytes
    leave_after: float | None = None
    leave_at: int | None = None
    wanted: tuple[int, ...] = CLEAN


def cases(source: random.Random, longest: int) -> Iterator[Case]:
    """Yield requests without end. longest: tokens of the server's context."""

    def ids(low: int, high: int) -> list[int]:
        return [source.randint(10, 200) for _ in range(source.randint(low, high))]

    shared = ids(longest // 4, longest // 4)
    while True:
        kind = source.choice(KINDS)
        body: dict[str, Any] = {"max_tokens": source.randint(1, 40), "temperature": source.choice((0, 1.0))}
        prompt = ids(1, longest // 2)
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        chat = {**body, "messages": [{"role": "user", "content": "tell me " * source.randint(1, 6)}]}
        long = {**body, "prompt": prompt, "max_tokens": longest // 3, "ignore_eos": True}
        if kind == "whole":
            yield Case(kind, TEXT, {**body, "prompt": prompt})
        elif kind == "shared":
            yield Case(kind, TEXT, {**body, **stream, "prompt": shared + ids(1, 8)})
        elif kind == "chat":
            yield Case(kind, CHAT, {**chat, **stream, "logprobs": True, "top_logprobs": 2})
        elif kind == "several":
            yield Case(kind, TEXT, {**body, "prompt": [ids(1, 20), ids(1, 20)], "n": source.randint(2, 4)})
        elif kind == "long":
            yield Case(kind, TEXT, {**long, **stream})
        elif kind == "leaves mid-stream":
            yield Case(kind, TEXT, {**long, **stream}, leave_at=source.randint(1, 12))
        elif kind == "leaves early":
            yield Case(kind, TEXT, long, leave_after=source.uniform(0, 0.1))
        elif kind == "grammar":
            form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
            yield Case(kind, CHAT, {**chat, "response_format": form})
        elif kind == "bad grammar":
            rule = source.choice(({"regex": "("}, {"grammar": "start: ???"}, {"json": {"type": "strange"}}))
            yield Case(kind, TEXT, {**body, "prompt": prompt, "structured_outputs": rule}, wanted=(400, 429, 503))
        elif kind == "grammar, leaves":
            rule = {"regex": f"[a-z]{{3,{source.randint(4, 40)}}}"}
            yield Case(kind, TEXT, {**long, "structured_outputs": rule}, leave_after=source.uniform(0, 0.05))
        elif kind == "too long":
            yield Case(kind, TEXT, {**body, "prompt": ids(longest, longest + 9)}, wanted=(400, 429, 503))
        elif kind == "nonsense":
            bad = source.choice((b"{", b"\xff\xfe", b"[]", b'{"prompt": 3}', b'{"prompt": "x", "n": -1}', b""))
            yield Case(kind, TEXT, bad, wanted=(400, 422))
        elif kind == "greedy for memory":
            yield Case(kind, TEXT, {**body, "prompt": prompt, "n": 10_000}, wanted=(400,))
        elif kind == "embedding":
            yield Case(kind, "/v1/embeddings", {"input": [ids(1, 30), ids(1, 30)]})


KINDS = (
    "whole, shared, shared, chat, several, long, long, leaves mid-stream, leaves mid-stream, leaves early, grammar, bad grammar, "
    "grammar; leaves, too long, nonsense, greedy for memory, embedding"
).split(", ")
KINDS = [kind.replace(";", ",") for kind in KINDS]


async def send(session: aiohttp.ClientSession, case: Case, report: Report) -> None:
    """Send a request, and note how it ended and what was wrong with it."""
    try:
        async with asyncio.timeout(case.leave_after):
            status = await _answered(session, case, report)
    except TimeoutError:
        report.outcomes[f"{case.kind}: left"] += 1
        return
    except (aiohttp.ClientError, OSError) as error:
        report.outcomes[f"{case.kind}: connection lost"] += 1
        report.problems.append(f"{case.kind}: {type(error).__name__}: {error}")
        return
    report.outcomes[f"{case.kind}: {status}"] += 1
    if isinstance(status, int) and status not in case.wanted:
        report.problems.append(f"{case.kind}: status {status}, expected one of {case.wanted}")


async def _answered(session: aiohttp.ClientSession, case: Case, report: Report) -> int | str:
    data = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    async with session.post(case.path, data=data, headers={"content-type": "application/json"}) as response:
        if response.status != 200:
            body = json.loads(await response.read())
            if not isinstance(body.get("error", {}).get("message"), str):
                report.problems.append(f"{case.kind}: no error in {str(body)[:200]}")
            return response.status
        if response.content_type != "text/event-stream":
            body = json.loads(await response.read())
            if not (body.get("choices") or body.get("data")):
                report.problems.append(f"{case.kind}: nothing in {str(body)[:200]}")
            return 200
        pieces, last = 0, b""
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            pieces, last = pieces + 1, line[6:].strip()
            if pieces == case.leave_at:
                response.close()
                return "left"
            if last != b"[DONE]" and (error := json.loads(last).get("error")):
                # A deadline, a shutdown, or a worker that was killed under it: never for no reason.
                if error.get("code") not in ("deadline_exceeded", "service_unavailable"):
                    report.problems.append(f"{case.kind}: {error} in a stream")
                return str(error.get("code"))
        if last != b"[DONE]":
            report.problems.append(f"{case.kind}: a stream ends with {last[:100]!r}")
        return 200


class Server:
    """`peg serve` as a child process on a free port of this machine."""

    def __init__(self, model: str, options: list[str], log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "pegboard", "serve", model, "--port", "0", *options]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        # The system has chosen a port, which it tells.
        while (told := re.search(r" at (http://\S+)\n", log.read_text())) is None:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server does not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        self.url = told[1]

    async def ready(self, session: aiohttp.ClientSession, seconds: float = 300) -> None:
        """Wait until it serves. Raises RuntimeError with its log when it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get("/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server does not serve: {self.log.read_text()[-2000:]}")

    async def metrics(self, session: aiohttp.ClientSession) -> dict[str, float]:
        """Return the numbers without labels of /metrics."""
        async with session.get("/metrics") as response:
            text = await response.text()
        return {name: float(value) for name, value in re.findall(r"^pegboard_(\w+) (\S+)$", text, re.MULTILINE)}

    def workers(self) -> list[int]:
        """Return the processes that it started."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    found.append(int(stat.parent.name))
        return found

    def rss(self) -> tuple[float, float]:
        """Return the memory of the server's own process and that of its workers, MB."""
        return resident([self.process.pid]), resident(self.workers())

    def stop(self, seconds: float = 300) -> int:
        """Tell it to stop and return its status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -9


def resident(pids: Iterable[int]) -> float:
    """Return the memory that processes hold, MB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGESIZE") / 1e6


async def chaos(
    server: Server,
    *,
    requests: int | None,
    seconds: float | None,
    clients: int,
    longest: int,
    seed: int,
    kill: float | None,
) -> Report:
    """Abuse a server with so many requests, or for so long, and return what happened.

    kill: seconds between two deaths of a worker, in the mean; None for none.
    """
    report, source = Report(), random.Random(seed)
    endless, sent, began = cases(source, longest), 0, time.monotonic()
    connector = aiohttp.TCPConnector(limit=0, force_close=False)
    async with aiohttp.ClientSession(server.url, connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        await server.ready(session)

        def more() -> bool:
            if requests is not None and sent >= requests:
                return False
            return seconds is None or time.monotonic() - began < seconds

        async def client() -> None:
            nonlocal sent
            while more():
                sent += 1
                await send(session, next(endless), report)

        async def watch() -> None:
            while True:
                for samples, now in zip((report.rss, report.workers), server.rss(), strict=True):
                    samples.append(now)
                await asyncio.sleep(0.5)

        async def killer() -> None:
            steps = -1.0
            while kill is not None:
                # One that is killed before it has done anything says nothing about those that work.
                now = (await server.metrics(session))["engine_steps_total"]
                if now <= steps + 20 or not (workers := server.workers()):
                    await asyncio.sleep(0.05)
                    continue
                os.kill(source.choice(workers), signal.SIGKILL)
                report.kills, steps = report.kills + 1, now
                await asyncio.sleep(source.uniform(0.5 * kill, 1.5 * kill))

        others = [asyncio.create_task(watch()), asyncio.create_task(killer())]
        await asyncio.gather(*(client() for _ in range(clients)))
        report.seconds = time.monotonic() - began
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await _settled(server, session, report)
    return report


async def _settled(server: Server, session: aiohttp.ClientSession, report: Report) -> None:
    """Wait until nothing is held, and see that the server serves."""
    end = time.monotonic() + SETTLE
    names = ("kv_pages_held", "requests_running", "requests_waiting")
    while True:
        report.metrics = await server.metrics(session)
        held = {name: report.metrics[name] for name in names if report.metrics[name]}
        if not held:
            break
        if time.monotonic() > end:
            report.problems.append(f"held {SETTLE:g} s after the last request: {held}")
            break
        await asyncio.sleep(0.05)
    body = {"prompt": [20, 21, 22], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    for _ in range(1500):
        async with session.post(TEXT, json=body) as response:
            answer = await response.json()
            if response.status == 200:
                break
        await asyncio.sleep(0.2)  # a worker may be starting again
    if response.status != 200 or answer["usage"]["completion_tokens"] != 4:
        report.problems.append(f"it does not serve any more: {answer}")


def server_options(*, kill: bool, memory: str) -> list[str]:
    """Return options of `peg serve`: a cache for a few requests only, and little patience."""
    options = ["--set", "max_num_seqs=16", "--set", "max_num_tokens=128", "--set", "page_size=8"]
    options += ["--kv-memory", memory, "--deadline", "20", "--queue-timeout", "15", "--limit", "inside=64"]
    options += ["--platform", "cpu", "--dtype", "float32", "--threads", "1", "--unknown-fields", "ignore"]
    return [*options, "--set", "executor=multiproc"] if kill else options


def span(samples: Sequence[float]) -> str:
    """Return the least and the greatest of some MB."""
    return f"{min(samples):.0f} to {max(samples):.0f} MB"


def main() -> int:
    """Run it and print what happened; 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="small: the server is what is tried")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--context", type=int, default=256, help="tokens of the context")
    parser.add_argument("--kv-memory", default="1MB")
    parser.add_argument(
        "--kill", type=float, nargs="?", const=2.0, metavar="SECONDS", help="kill a worker about so often"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("chaos.log"), help="what the server prints")
    args = parser.parse_args()
    if args.requests is None and args.minutes is None:
        args.requests = 2000
    options = server_options(kill=args.kill is not None, memory=args.kv_memory)
    server = Server(args.model, [*options, "--max-model-len", str(args.context)], args.log)
    try:
        report = asyncio.run(
            chaos(
                server,
                requests=args.requests,
                seconds=None if args.minutes is None else 60 * args.minutes,
                clients=args.clients,
                longest=args.context,
                seed=args.seed,
                kill=args.kill,
            )
        )
    finally:
        status = server.stop()
    if status != 0:
        report.problems.append(f"told to stop, the server ended with status {status}")
    for outcome, count in sorted(report.outcomes.items()):
        print(f"{count:7,} {outcome}")
    told = {name: int(report.metrics[name]) for name in ("engine_steps_total", "preemptions_total", "kv_pages_held")}
    print(f"{report.requests:,} requests in {report.seconds:.0f} s, {report.kills} workers killed; {told}")
    print(f"memory of the server {span(report.rss)}, grown by {report.growth:+.1f} MB in its second half")
    if args.kill is not None:
        print(f"memory of its worker {span(report.workers)}")
    print("\n".join(report.problems[:40]) or "nothing was wrong")
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
