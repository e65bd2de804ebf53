"""Log-probabilities of the model's own distribution, and the most probable ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegboard.interfaces.engine import TokenLogprobs
from pegboard.ops import KernelTable
from pegboard_engine.sampling.blocks import on_host, top_ids
from pegboard_engine.sampling.ops import logprob_sums

_CHUNK, _LARGE_CHUNK = 1 << 21, 1 << 26
"""Logits that are worked on at once: float32 copies of them stay in the caches of a processor, and small on a device."""


@dataclass(slots=True)
class Logprobs:
    """Of R rows. On the sampler's device; `host` brings them to numpy.

    rows: [R] numpy int32, which rows of the logits they are of. ids: [R] int64, the tokens that stand there.
    chosen: [R] float32, their log-probabilities. ranks: [R] int64, 1 for the most probable one; ties share the better rank.
    nums: [R] numpy int32, how many of the most probable ids were asked for. top_ids, top: [R, K] int64 and float32, best first.
    extra_ids: [X, 2] numpy int32, pairs of an index into rows and an id. extra: [X] float32.
    """

    rows: np.ndarray
    ids: Any
    chosen: Any
    ranks: Any
    nums: np.ndarray
    top_ids: Any
    top: Any
    extra_ids: np.ndarray
    extra: Any

    def host(self) -> Logprobs:
        """Return the same in numpy. Waits for the device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Logprobs(**{name: v.cpu().numpy() if isinstance(v, Tensor) else v for name, v in values.items()})

    def pack(self) -> list[np.ndarray]:
        """Return arrays from which `unpack` makes the same, for another process."""
        held = self.host()
        return [getattr(held, f.name) for f in fields(held)]

    @classmethod
    def unpack(cls, arrays: Sequence[np.ndarray]) -> Logprobs:
        """Return what was packed."""
        return cls(*arrays)

    def tokens(self) -> list[TokenLogprobs]:
        """Return one value for each row, for people. Waits for the device."""
        held = self.host()
        owners = held.extra_ids[:, 0].searchsorted(np.arange(len(held.rows) + 1)).tolist()
        extra = list(zip(held.extra_ids[:, 1].tolist(), held.extra.tolist(), strict=True))
        columns = (held.ids, held.chosen, held.ranks, held.nums, held.top_ids, held.top)
        result = []
        for i, (token, chosen, rank, num, ids, top) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            best = tuple(zip(ids, top, strict=True))
            more = tuple(extra[owners[i] : owners[i + 1]])
            result.append(TokenLogprobs(token, chosen, rank, best if num < 0 else best[:num], more))
        return result


def logprobs_of(
    logits: Tensor,
    ids: Tensor,
    num_top: int | np.ndarray = 0,
    extra_ids: Sequence[int] = (),
    kernels: KernelTable | None = None,
) -> Logprobs:
    """Return the log-probabilities of ids [R] int64 at logits [R, V], of their `num_top` most probable ids and of `extra_ids`.

    num_top: for all rows or for each [R]; -1 for all ids. kernels: the op `logprob_sums`; torch's without. Computed in float32 with
    sums in float64, some rows at a time.
    """
    rows = len(logits)
    nums = np.broadcast_to(np.asarray(num_top, np.int32), (rows,))
    owners = np.repeat(np.arange(rows, dtype=np.int32), len(extra_ids))
    extra = np.stack([owners, np.tile(np.asarray(extra_ids, np.int32), rows)], 1)
    return gather_logprobs(logits, np.arange(rows, dtype=np.int32), ids, nums, extra, kernels)


def gather_logprobs(
    logits: Tensor,
    rows: np.ndarray,
    ids: Tensor,
    nums: np.ndarray,
    extra: np.ndarray,
    kernels: KernelTable | None = None,
) -> Logprobs:
    """Return the log-probabilities of logits [R, V], which are `rows` [R] of a step; see `Logprobs` for the rest."""
    sums = logprob_sums if kernels is None else kernels.logprob_sums
    vocab = logits.shape[1]
    count = 0 if not len(nums) else vocab if int(nums.min()) < 0 else min(int(nums.max()), vocab)
    pairs = torch.from_numpy(extra.astype(np.int64)).to(logits.device)
    size = max(1, (_CHUNK if on_host(logits) else _LARGE_CHUNK) // vocab)
    parts = []
    for start in range(0, max(len(logits), 1), size):
        end = min(start + size, len(logits))
        inside = slice(*np.searchsorted(extra[:, 0], [start, end]))
        where = (pairs[inside, 0] - start, pairs[inside, 1])
        parts.append(_gather(logits[start:end], ids[start:end], count, where, sums))
    chosen, ranks, best, top, others = (torch.cat(column) for column in zip(*parts, strict=True))
    return Logprobs(rows, ids, chosen, ranks, nums, best, top, extra, others)


def _gather(
    logits: Tensor, ids: Tensor, count: int, where: tuple[Tensor, Tensor], sums: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    base, ranks = sums(logits, ids)
    base = base[:, None]
    best = top_ids(logits.float(), count) if count else ids.new_zeros(len(ids), 0)
    top = (logits.gather(1, best) - base).float()
    extra = (logits[where] - base[where[0], 0]).float()
    return (logits.gather(1, ids[:, None]) - base).float().squeeze(1), ranks, best, top, extra
