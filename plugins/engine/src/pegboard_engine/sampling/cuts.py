"""Cut-offs of a distribution.

Weights are exp(logit - greatest), [R, V] float32, so that the greatest is 1; an id that is dropped weighs 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pegboard_engine.sampling.blocks import mass, on_host, top_values

# The nuclei of a trained model are seldom larger.
_GUESS = 128


def keep(
    weights: Tensor,
    top_k: np.ndarray | None = None,
    top_p: np.ndarray | None = None,
    min_p: np.ndarray | None = None,
    typical_p: np.ndarray | None = None,
) -> Tensor:
    """Return weights in which what the cut-offs drop is 0, in place or anew. Each is [R] on the host: int32 with 0 for off, or float32.

    min_p drops what weighs less than that share of the greatest; top_k what weighs less than the k-th; top_p keeps the smallest set
    of the most probable that holds this share of what those two left (arXiv:1904.09751); typical_p the smallest set of this share
    whose information is nearest to the entropy of what is left (arXiv:2202.00666). What ties with the last that is kept is kept.
    """
    floor = None if min_p is None else torch.from_numpy(min_p).to(weights)
    if top_k is not None and top_k.any():
        kth = _kth(weights, top_k)
        floor = kth if floor is None else torch.maximum(floor, kth)
    if top_p is not None and (top_p < 1).any():
        floor = _nucleus(weights, floor, top_p)
    if floor is not None:
        weights = _above(weights, floor)
    if typical_p is not None and (typical_p < 1).any():
        weights = _typical(weights, typical_p)
    return weights


def _above(weights: Tensor, floor: Tensor) -> Tensor:
    """Return a copy with all below floor [R] at 0."""
    # Both are far faster in float32 than with a tensor of booleans.
    return torch.ge(weights, floor[:, None], out=torch.empty_like(weights)).mul_(weights)


def _kth(weights: Tensor, top_k: np.ndarray) -> Tensor:
    """Return [R] the k-th greatest weight of each row, 0 where k is 0."""
    k = torch.from_numpy(np.minimum(top_k, weights.shape[1])).to(weights.device, torch.int64)
    found = top_values(weights, min(int(top_k.max()), weights.shape[1]))
    return torch.where(k > 0, found.gather(1, (k - 1).clamp_(min=0)[:, None]).squeeze(1), 0)


def _nucleus(weights: Tensor, floor: Tensor | None, top_p: np.ndarray) -> Tensor:
    """Return [R] the least weight that top_p keeps of what is not below floor [R]; floor itself where top_p is 1."""
    share = torch.from_numpy(top_p).to(weights.device, torch.float64)
    target = (share * mass(weights if floor is None else _above(weights, floor)))[:, None]
    if on_host(weights):
        found, short = _reach(top_values(weights, min(_GUESS, weights.shape[1])), target)
        rows = (short & (share < 1)).nonzero().squeeze(1)
        if rows.numel():
            found[rows] = _reach(_ascending(weights[rows]).flip(1), target[rows])[0]
    else:
        # To look whether a guess is enough would wait for all that is queued.
        found, _ = _reach(_ascending(weights).flip(1), target)
    found = torch.where(share < 1, found, 0)
    return found if floor is None else torch.maximum(found, floor)


def _reach(ordered: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight [R] at which the sum of ordered [R, N], descending, reaches target [R, 1], and whether it does not."""
    cut = (ordered.cumsum(1, dtype=torch.float64) < target).sum(1)
    short = cut == ordered.shape[1]
    return ordered.gather(1, cut.clamp_(max=ordered.shape[1] - 1)[:, None]).squeeze(1), short


def _typical(weights: Tensor, typical_p: np.ndarray) -> Tensor:
    share = torch.from_numpy(typical_p).to(weights.device, torch.float64)
    total = mass(weights)
    information = total.log().float()[:, None] - weights.log()
    entropy = mass(torch.where(weights > 0, weights * information, 0)) / total
    distance = (information - entropy.float()[:, None]).abs_()
    # Pairs as integers, so that they are sorted together.
    pairs = _ascending((distance.view(torch.int32).long() << 32) + weights.view(torch.int32))
    ordered, behind = (pairs >> 32).int().view(torch.float32), pairs.int().view(torch.float32)
    reached = behind.cumsum(1, dtype=torch.float64) < (share * total)[:, None]
    limit = ordered.gather(1, reached.sum(1, keepdim=True).clamp_(max=ordered.shape[1] - 1))
    limit = torch.where(share[:, None] < 1, limit, torch.inf)
    return torch.le(distance, limit, out=distance).mul_(weights)


def _ascending(values: Tensor) -> Tensor:
    """Return each row sorted. On the host by numpy, which does it several times faster than torch."""
    if on_host(values):
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(1).values
