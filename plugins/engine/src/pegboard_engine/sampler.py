"""From logits to token ids, for all rows at once.

Nothing of a row's result depends on the other rows: its random number is a hash of its seed and output position, cut-offs are
values (ties stay or go together), and the inverse of the cumulative distribution runs over ids in their own order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pegboard_engine.request import Request

_NUCLEUS_GUESS = 1024


@dataclass(slots=True)
class SamplingBatch:
    """How to sample M rows; each tensor is [M] float32 unless said otherwise, all on the host.

    temperature: 0 is greedy. top_k: int64, 0 is off. uniform: float64 in [0, 1). penalty_rows, penalty_ids: [K] int64 pairs of a row
    and an id that it holds already; penalty: [K] divisor of each.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    penalty_rows: Tensor | None = None
    penalty_ids: Tensor | None = None
    penalty: Tensor | None = None


def sampling_batch(requests: Sequence[Request]) -> SamplingBatch | None:
    """Return how to sample the next token of each request; None when all take the greatest logit as it is."""
    if all(request.greedy for request in requests):
        return None
    params = [request.params for request in requests]
    seeds = np.array([request.seed for request in requests], dtype=np.uint64)
    positions = np.array([request.num_output for request in requests], dtype=np.uint64)
    batch = SamplingBatch(
        temperature=torch.tensor([p.temperature for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=torch.tensor([p.top_p for p in params]),
        min_p=torch.tensor([p.min_p for p in params]),
        uniform=torch.from_numpy(uniform(seeds, positions)),
    )
    penalised = [i for i, p in enumerate(params) if p.repetition_penalty != 1]
    if penalised:
        ids = [np.array(requests[i].tokens, dtype=np.int64) for i in penalised]
        counts = [len(part) for part in ids]
        batch.penalty_ids = torch.from_numpy(np.concatenate(ids))
        batch.penalty_rows = torch.from_numpy(np.repeat(np.array(penalised, dtype=np.int64), counts))
        factors = np.array([params[i].repetition_penalty for i in penalised], dtype=np.float32)
        batch.penalty = torch.from_numpy(np.repeat(factors, counts))
    return batch


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return [M] float64 in [0, 1), a hash of uint64 seeds and positions (the finaliser of SplitMix64, doi:10.1145/2714064.2660195)."""
    with np.errstate(over="ignore"):
        return (_mix(_mix(seeds) + positions * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: Tensor, batch: SamplingBatch | None) -> tuple[Tensor, Tensor]:
    """Return ids [M] int64 and valid [M] bool of logits [M, V]; a row whose greatest logit is not finite is invalid."""
    if batch is not None:
        logits = logits.float()
        if batch.penalty is not None:
            logits = _penalise(logits, batch)
    best = logits.argmax(-1)
    valid = logits.gather(1, best[:, None]).squeeze(1).isfinite()
    if batch is None:
        return best, valid
    rows = (valid.cpu() & (batch.temperature > 0)).nonzero().squeeze(1)
    if rows.numel():
        best[rows.to(best.device)] = _draw(logits, rows, batch)
    return best, valid


def _penalise(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Repetition penalty (arXiv:1909.05858): positive logits of ids seen are divided, negative ones multiplied."""
    assert batch.penalty is not None and batch.penalty_rows is not None and batch.penalty_ids is not None
    device = logits.device
    where = (batch.penalty_rows.to(device), batch.penalty_ids.to(device))
    factor, old = batch.penalty.to(device), logits[where]
    # An id that occurs twice gets the same value twice: the new one is made from the old logit.
    return logits.index_put(where, torch.where(old > 0, old / factor, old * factor))


def _draw(logits: Tensor, rows: Tensor, batch: SamplingBatch) -> Tensor:
    """Draw an id for each of `rows` [R] (host int64)."""
    device = logits.device
    logits = logits[rows.to(device)] / batch.temperature[rows, None].to(device)
    logits = logits - logits.amax(-1, keepdim=True)
    top_k, top_p, min_p = batch.top_k[rows], batch.top_p[rows], batch.min_p[rows]
    if top_k.any():
        logits = _keep_top_k(logits, top_k)
    weights = logits.exp()
    if (top_p < 1).any():
        weights = _keep_nucleus(weights, top_p)
    if min_p.any():
        # The most probable id weighs exp(0) = 1, so min_p is a threshold on the weights themselves.
        weights = weights * (weights >= min_p[:, None].to(device))
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    target = batch.uniform[rows, None].to(device) * total
    drawn = torch.searchsorted(cumulative, target, right=True)
    # Rounding may carry the target up to the total: stay at the last id that has any weight.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last).squeeze(1)


def _keep_top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    """Rows [R, V] with all below the k-th greatest at -inf; top_k [R] on the host, 0 keeps all."""
    k = top_k.clamp(max=logits.shape[1])
    greatest = logits.topk(int(k.max())).values
    threshold = greatest.gather(1, (k - 1).clamp(min=0)[:, None].to(logits.device))
    drop = (logits < threshold) & (k > 0)[:, None].to(logits.device)
    return logits.masked_fill(drop, float("-inf"))


def _keep_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Rows [R, V] with all outside the smallest set of mass top_p at 0 (arXiv:1904.09751); top_p [R] on the host."""
    wanted = top_p.to(weights.device, torch.float64)[:, None] * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(_NUCLEUS_GUESS, weights.shape[1])
    greatest = weights.topk(size).values
    mass = greatest.cumsum(-1, dtype=torch.float64)
    if size < weights.shape[1] and bool(((mass[:, -1:] < wanted) & (top_p < 1)[:, None].to(weights.device)).any()):
        greatest = weights.sort(-1, descending=True).values
        mass = greatest.cumsum(-1, dtype=torch.float64)
    cut = (mass < wanted).sum(-1, keepdim=True).clamp(max=greatest.shape[1] - 1)
    threshold = greatest.gather(1, cut)
    keep = (weights >= threshold) | (top_p >= 1)[:, None].to(weights.device)
    return weights * keep
