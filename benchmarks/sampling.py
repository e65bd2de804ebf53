"""The sampler and a plain implementation that sorts, in turn: microseconds a step, the median of each.

    python benchmarks/sampling.py [--vocab 49152] [--rows 1,8,32] [--threads 1] [--rounds 15] [--device cpu] [--json]

Logits are of a language model's shape: normal noise below a few ids that stand out. Needs pegboard-engine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.types import SamplingParams
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.sampling.sampler import Sampler

CASES: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 50},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_k, top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "typical_p": {"temperature": 0.8, "typical_p": 0.9},
    "flat top_p": {"temperature": 5.0, "top_p": 0.95},
    "penalties": {"temperature": 0.8, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    "logprobs": {"temperature": 0.8, "logprobs": 5},
}


def make_logits(rows: int, vocab: int, device: str) -> Tensor:
    """Return [rows, vocab] bfloat16."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab, generator=generator) * 1.5
    likely = torch.randint(vocab, (rows, 60), generator=generator)
    logits.scatter_add_(1, likely, torch.linspace(16, 4, 60).expand(rows, 60))
    return logits.bfloat16().to(device)


def plain(logits: Tensor, params: SamplingParams, past: Tensor, generator: torch.Generator) -> Tensor:
    """Sample by sorting the vocabulary, as it is usually written: one setting for all rows."""
    logits = logits.float()
    if params.logprobs is not None:
        logits.log_softmax(-1).topk(params.logprobs)
    if params.repetition_penalty != 1:
        counts = torch.zeros(logits.shape, dtype=torch.int64, device=logits.device)
        counts.scatter_add_(1, past, torch.ones_like(past))
        scaled = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
        logits = torch.where(counts > 0, scaled, logits) - params.presence_penalty * (counts > 0)
    if params.temperature == 0:
        return logits.argmax(-1)
    logits = logits / params.temperature
    if params.min_p:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < params.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    if params.top_k or params.top_p < 1:
        ordered, ids = logits.sort(-1)
        if params.top_k:
            ordered[:, : -params.top_k] = -torch.inf
        if params.top_p < 1:
            ordered = ordered.masked_fill(ordered.softmax(-1).cumsum(-1) <= 1 - params.top_p, -torch.inf)
        logits = logits.scatter(1, ids, ordered)
    if params.typical_p < 1:
        logps = logits.log_softmax(-1)
        shifted = (logps + (logps.exp() * logps).nansum(-1, keepdim=True).neg()).abs()
        _, ids = shifted.sort(-1)
        mass = logits.gather(1, ids).softmax(-1).cumsum(-1)
        drop = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], 1) >= params.typical_p
        logits = logits.masked_fill(drop.scatter(1, ids, drop), -torch.inf)
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits.softmax(-1) / noise).argmax(-1)


def measure(case: Mapping[str, Any], rows: int, vocab: int, device: str, rounds: int) -> tuple[float, float]:
    """Return the median microseconds of a step: ours with its batch, and the plain one."""
    params, logits = SamplingParams(**case), make_logits(rows, vocab, device)
    columns, sampler = SamplingColumns(rows, vocab), Sampler(vocab, device)
    past = torch.randint(vocab, (rows, 500), generator=torch.Generator().manual_seed(1))
    for slot in range(rows):
        columns.set(slot, params, seed=slot, prompt_ids=past[slot].numpy())
    slots, generator = np.arange(rows, dtype=np.int32), torch.Generator(device).manual_seed(0)
    past = past.to(device)
    position = 0

    def ours() -> Tensor:
        nonlocal position
        position += 1
        return sampler.sample(logits, columns.batch(slots, np.full(rows, position))).ids

    def theirs() -> Tensor:
        return plain(logits, params, past, generator)

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for run, seen in zip((ours, theirs), times, strict=True):
            seen.append(timed(run, device))
    first, second = (statistics.median(seen[2:]) for seen in times)
    return first, second


def timed(run: Callable[[], Tensor], device: str) -> float:
    """Return microseconds until the ids are on the host."""
    start = time.perf_counter()
    run().tolist()
    return (time.perf_counter() - start) * 1e6


def main() -> None:
    """Print a table, or its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for rows in map(int, args.rows.split(",")):
        for name, case in CASES.items():
            ours, theirs = measure(case, rows, args.vocab, args.device, args.rounds)
            told = {"case": name, "rows": rows, "vocab": args.vocab, "us": round(ours), "plain us": round(theirs)}
            line = f"{rows:4d} rows  {name:14s} {ours:10.0f} us {theirs:10.0f} us  x{theirs / ours:.1f}"
            print(json.dumps(told) if args.json else line, flush=True)


if __name__ == "__main__":
    main()
