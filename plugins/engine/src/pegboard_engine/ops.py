"""The two small ops at both ends of a decode step that a platform may replace: the tokens that come in, and those that go out."""

from __future__ import annotations

import torch
from torch import Tensor

from pegboard.ops import register


@register(
    "known_ids",
    "(ids [N], last [S], slots [N], int64) -> [N] int64: ids, and last[slots] in the place of those below 0",
)
def known_ids(ids: Tensor, last: Tensor, slots: Tensor) -> Tensor:
    return torch.where(ids < 0, last.index_select(0, slots), ids)


@register(
    "keep_last",
    "(ids [N] int64, greatest logits [N] float, last [S], slots [N] int64) -> [N] int64: ids, and -1 - id where the logit is not finite; "
    "last[slots] become ids, in place. Of slots that are there several times one counts",
)
def keep_last(ids: Tensor, most: Tensor, last: Tensor, slots: Tensor) -> Tensor:
    last.index_copy_(0, slots, ids)
    return torch.where(most.isfinite(), ids, -1 - ids)
