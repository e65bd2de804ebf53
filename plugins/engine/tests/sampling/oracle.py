"""Sampling of one row by the definitions, one id at a time, in double precision; and how near its decisions were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pegboard.types import SamplingParams

WORD = 2**64


@dataclass
class Row:
    """One row: its logits and all that is asked of it. allowed: ids that a grammar allows."""

    logits: Sequence[float]
    params: SamplingParams
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    seed: int = 0
    answer: int = 0
    ends: Sequence[int] = ()
    words: Sequence[Sequence[int]] = ()
    allowed: Sequence[int] | None = None


@dataclass
class Answer:
    """token: what comes; None when nothing may. kept: id -> probability. margin: how near the nearest decision was, relatively."""

    token: int | None
    kept: dict[int, float]
    margin: float = field(default=1.0)


def splitmix(seed: int, count: int) -> int:
    """Return the `count`-th number, from 0, of the generator that Steele, Lea and Flood published."""
    state = seed
    for _ in range(count + 1):
        state = (state + 0x9E3779B97F4A7C15) % WORD
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def edited(row: Row) -> list[float]:
    """Return the logits before the greedy choice."""
    p, values = row.params, [float(value) for value in row.logits]
    for token in range(len(values)):
        if row.allowed is not None and token not in row.allowed:
            values[token] = -math.inf
        if p.allowed_ids is not None and token not in p.allowed_ids:
            values[token] = -math.inf
        values[token] += p.logit_bias.get(token, 0.0)
    output = list(row.output)
    for word in row.words:
        *head, last = word
        if output[len(output) - len(head) :] == list(head) and len(output) >= len(head):
            values[last] = -math.inf
    if len(output) < p.min_tokens:
        for token in row.ends:
            values[token] = -math.inf
    for token in {*row.prompt, *output}:
        r = p.repetition_penalty
        values[token] = values[token] / r if values[token] > 0 else values[token] * r
    for token in set(output):
        values[token] -= p.frequency_penalty * output.count(token) + p.presence_penalty
    return values


def answer(row: Row, uniform: float) -> Answer:
    """Return what a row comes to with a random number in [0, 1)."""
    p, values = row.params, edited(row)
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    best = values[order[0]]
    if not math.isfinite(best):
        return Answer(None, {})
    margin = [1.0]
    if p.temperature == 0:
        margin += [abs(best - value) for value in values if value != best]
        return Answer(order[0], {order[0]: 1.0}, min(margin))
    weights = {token: math.exp((values[token] - best) / p.temperature) for token in order}
    if p.min_p:
        margin += [abs(weight - p.min_p) / p.min_p for weight in weights.values()]
        weights = {token: weight for token, weight in weights.items() if weight >= p.min_p}
    if p.top_k and p.top_k < len(values):
        least = weights[list(weights)[: p.top_k][-1]]
        margin += [abs(weight / least - 1) for weight in weights.values() if weight != least and least]
        weights = {token: weight for token, weight in weights.items() if weight >= least}
    if p.top_p < 1:
        weights, near = smallest(weights, [(-weight, token) for token, weight in weights.items()], p.top_p)
        margin.append(near)
    if p.typical_p < 1:
        total = sum(weights.values())
        weights = {token: weight for token, weight in weights.items() if weight > 0}
        information = {token: -math.log(weight / total) for token, weight in weights.items()}
        entropy = sum(weight / total * information[token] for token, weight in weights.items())
        keys = [(abs(information[token] - entropy), token) for token in weights]
        weights, near = smallest(weights, keys, p.typical_p)
        margin.append(near)
    total, reached, token = sum(weights.values()), 0.0, -1
    kept = {token: weights[token] / total for token in sorted(weights)}
    for candidate, probability in kept.items():
        reached += probability
        margin.append(abs(reached - uniform))
        if token < 0 and reached > uniform:
            token = candidate
    return Answer(token, kept, min(margin))


def smallest(weights: dict[int, float], keys: list[tuple[float, int]], share: float) -> tuple[dict[int, float], float]:
    """Return the smallest set of the least keys with that share of the weight, equal keys included, and how near the cut was."""
    wanted, reached = share * sum(weights.values()), 0.0
    near, last = 1.0, math.inf
    for key, token in sorted(keys):
        reached += weights[token]
        near = min(near, abs(reached - wanted) / wanted)
        if reached >= wanted:
            last = key
            break
    near = min([near, *(abs(key - last) for key, _ in keys if key != last)])
    return {token: weights[token] for key, token in keys if key <= last}, near


def uniform_of(row: Row) -> float:
    """Return the random number of a row's position in its stream."""
    from pegboard_engine.sampling.streams import stream

    return (splitmix(stream(row.seed, row.answer), len(row.output)) >> 11) / 2**53


def logprobs(logits: Sequence[float]) -> np.ndarray:
    """Return log-probabilities in double precision."""
    values = np.asarray(logits, np.float64)
    most = values.max()
    return values - most - math.log(np.exp(values - most).sum())
