"""Ops of losses over the vocabulary: what is read from a chunk of logits, and its derivatives, written over it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.ops import register


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return logits that stay between -softcap and softcap; as they are where that is None."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def cap_slope(logits: Tensor, softcap: float) -> Tensor:
    """Return the derivative of capped logits by what they were made from, for losses that write their own backward pass."""
    return 1 - (logits / softcap).square()


@register(
    "loss_rows",
    "(columns, dtype) -> how many rows of logits a loss has at once",
    differentiable=False,
)
def loss_rows(columns: int, dtype: torch.dtype) -> int:
    return 1024


@register(
    "logits_sums",
    "(logits [M, V], targets [M] int64, softcap | None) -> (log of the sum of exp(logits) [M], logit of the target [M]), at least"
    " float32, of capped logits; 0 for a target outside of [0, V)",
    differentiable=False,
)
def logits_sums(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    return _sums(_widened(logits, softcap), targets)


@register(
    "logits_slope_",
    "(logits [M, V], targets [M] int64, norm [M], factor [M] | None, softcap | None) -> logits, which become d(norm - logit of the"
    " target) / d logits, times factor; norm: the first of `logits_sums`, over all columns where V are a part of them",
    differentiable=False,
)
def logits_slope_(
    logits: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    return _slope_(logits, _widened(logits, softcap), targets, norm, factor, softcap)


@register(
    "cross_entropy_",
    "(logits [M, V], targets [M] int64 in [0, V), softcap | None) -> (log p(target) [M], at least float32; logits, which become"
    " d(-log p) / d logits)",
    differentiable=False,
)
def cross_entropy_(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    wide = _widened(logits, softcap)
    norm, picked = _sums(wide, targets)
    return picked - norm, _slope_(logits, wide, targets, norm, None, softcap)


@register(
    "add_product_",
    "(total [N, K], a [M, N], b [M, K]) -> total, to which a.t() @ b is added; total may be wider than a and b",
    differentiable=False,
)
def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == total.dtype:
        return total.addmm_(a.t(), b)
    return total.add_(F.linear(a.t(), b.t()))


@register(
    "scaled",
    "(x, factor [], at least float32, dtype) -> x * factor, rounded once to dtype",
    differentiable=False,
)
def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.mul(wide, factor, out=torch.empty_like(wide, dtype=dtype))


def _widened(logits: Tensor, softcap: float | None) -> Tensor:
    """Return capped logits of at least float32; the tensor itself where that changes nothing."""
    return capped(logits.to(torch.promote_types(logits.dtype, torch.float32)), softcap)


def _sums(wide: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    column, here = _columns(wide, targets)
    picked = wide.gather(1, column[:, None]).squeeze(1)
    return wide.logsumexp(-1), torch.where(here, picked, 0.0)


def _slope_(
    logits: Tensor, wide: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None, softcap: float | None
) -> Tensor:
    """Write the derivative over `logits`, and over `wide`, the same capped and widened."""
    column, here = _columns(wide, targets)
    of_cap = None if softcap is None else cap_slope(wide, softcap)
    found = wide.sub_(norm[:, None]).exp_()
    found.scatter_add_(1, column[:, None], -here.to(found.dtype)[:, None])
    if of_cap is not None:
        found.mul_(of_cap)
    if factor is not None:
        found.mul_(factor[:, None])
    return logits if found is logits else logits.copy_(found)


def _columns(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column of each target, of any where it is not here, and whether it is."""
    here = (targets >= 0) & (targets < logits.shape[1])
    return torch.where(here, targets, 0), here
