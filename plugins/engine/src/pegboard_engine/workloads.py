"""Workloads of the benchmarks: lists of (prompt ids, output length). Lengths are fixed, the ids follow from a seed.

stream, prompt2k, batch32 and prefix32 are for small models on a processor, the others for accelerators. Ids lie in a part of the
vocabulary that holds plain tokens in every model they are meant for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Requests = list[tuple[list[int], int]]


@dataclass(frozen=True, slots=True)
class Workload:
    """requests: seed -> pairs. metric: (pairs, seconds to the first token, seconds in all) -> figure in `unit`."""

    name: str
    requests: Callable[[int], Requests]
    metric: Callable[[Sequence[tuple[list[int], int]], float, float], float]
    unit: str


class Ids:
    """Random ids of one seed, lowest and highest included."""

    def __init__(self, seed: int, lowest: int, highest: int) -> None:
        self._random = random.Random(seed)
        self._range = lowest, highest

    def take(self, count: int) -> list[int]:
        """Return the next `count` ids."""
        return [self._random.randint(*self._range) for _ in range(count)]


def _small(seed: int) -> Ids:
    return Ids(seed, 1000, 48000)


def _large(seed: int) -> Ids:
    return Ids(seed, 10, 10000)


def _lengths(count: int, prompt: tuple[int, int], output: tuple[int, int]) -> list[tuple[int, int]]:
    """Return pairs of lengths that are the same for every seed."""
    fixed = random.Random(0)
    return [(fixed.randint(*prompt), fixed.randint(*output)) for _ in range(count)]


def _equal(ids: Ids, count: int, prompt: int, output: int) -> Requests:
    return [(ids.take(prompt), output) for _ in range(count)]


def _mixed(ids: Ids, lengths: Sequence[tuple[int, int]]) -> Requests:
    return [(ids.take(prompt), output) for prompt, output in lengths]


def _shared(ids: Ids, count: int, head: int, tail: int, output: int) -> Requests:
    common = ids.take(head)
    return [(common + ids.take(tail), output) for _ in range(count)]


def stream_rate(requests: Sequence[tuple[list[int], int]], first: float, total: float) -> float:
    """Tokens a second after the first one."""
    return (sum(length for _, length in requests) - 1) / (total - first)


def output_rate(requests: Sequence[tuple[list[int], int]], first: float, total: float) -> float:
    """Output tokens a second, prompts included in the time."""
    return sum(length for _, length in requests) / total


def input_rate(requests: Sequence[tuple[list[int], int]], first: float, total: float) -> float:
    """Prompt tokens a second."""
    return sum(len(prompt) for prompt, _ in requests) / total


def seconds(requests: Sequence[tuple[list[int], int]], first: float, total: float) -> float:
    """Seconds in all."""
    return total


_OUT, _IN = "out tokens/s", "in tokens/s"

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("stream", lambda seed: _equal(_small(seed), 1, 128, 256), stream_rate, _OUT),
        Workload("prompt2k", lambda seed: _equal(_small(seed), 1, 2048, 1), input_rate, _IN),
        Workload("batch32", lambda seed: _mixed(_small(seed), _lengths(32, (32, 256), (16, 256))), output_rate, _OUT),
        Workload("prefix32", lambda seed: _shared(_small(seed), 32, 1024, 16, 32), seconds, "s"),
        Workload(
            "mixed", lambda seed: _mixed(_large(seed), _lengths(256, (100, 1024), (100, 1024))), output_rate, _OUT
        ),
        Workload("single", lambda seed: _equal(_large(seed), 1, 128, 256), output_rate, _OUT),
        Workload("batch64", lambda seed: _equal(_large(seed), 64, 1024, 128), seconds, "s"),
        Workload("shared", lambda seed: _shared(_large(seed), 256, 2048, 32, 64), seconds, "s"),
        Workload("prefill", lambda seed: _equal(_large(seed), 32, 2048, 1), input_rate, _IN),
    )
}
