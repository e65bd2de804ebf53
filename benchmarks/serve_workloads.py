"""Workloads of `serve.py`: (prompt ids, output tokens) pairs. Lengths are fixed; a seed changes ids alone, so that nothing is found in a
cache from one repetition to the next. Needs nothing but the standard library, so that a peer's environment runs it.

From one workload to the next something is found, since a repetition gives all of them the same stream of ids: behind `batch64` the first
half of every prompt of `prefill` is in the cache. The order of `WORKLOADS` is therefore a part of the definition.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Requests = list[tuple[list[int], int]]


def _ids(source: random.Random, count: int) -> list[int]:
    return [source.randint(10, 10000) for _ in range(count)]


def mixed(seed: int) -> Requests:
    """256 requests of 100 to 1,024 tokens in and out."""
    lengths, source = random.Random(0), random.Random(seed)
    pairs = [(lengths.randint(100, 1024), lengths.randint(100, 1024)) for _ in range(256)]
    return [(_ids(source, prompt), output) for prompt, output in pairs]


def single(seed: int) -> Requests:
    """One request of 128 tokens in, 256 out."""
    return [(_ids(random.Random(seed), 128), 256)]


def batch64(seed: int) -> Requests:
    """64 requests of 1,024 tokens in, 128 out."""
    source = random.Random(seed)
    return [(_ids(source, 1024), 128) for _ in range(64)]


def shared(seed: int) -> Requests:
    """256 requests with 2,048 tokens in common, 32 of their own, 64 out."""
    source = random.Random(seed)
    head = _ids(source, 2048)
    return [(head + _ids(source, 32), 64) for _ in range(256)]


def prefill(seed: int) -> Requests:
    """32 prompts of 2,048 tokens, one token out."""
    source = random.Random(seed)
    return [(_ids(source, 2048), 1) for _ in range(32)]


WORKLOADS: dict[str, Callable[[int], Requests]] = {
    "mixed": mixed,
    "single": single,
    "batch64": batch64,
    "shared": shared,
    "prefill": prefill,
}
UNITS = {"single": "out tok/s", "prefill": "in tok/s", "shared": "s", "batch64": "s", "mixed": "out tok/s"}


def figure(name: str, requests: Requests, seconds: float) -> float:
    """Return the figure of a repetition that took `seconds`, in the workload's unit."""
    if UNITS[name] == "s":
        return seconds
    tokens = sum(len(prompt) if UNITS[name] == "in tok/s" else output for prompt, output in requests)
    return tokens / seconds


def shrunk(requests: Requests) -> Requests:
    """Return a workload of the same kind that a test has time for."""
    return [(prompt[:40], min(output, 6)) for prompt, output in requests[:5]]
