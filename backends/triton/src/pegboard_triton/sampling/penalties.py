"""Op `penalise_`: a pass over the counts of whole rows, which needs no list of what was counted and writes no logit twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel
from pegboard_triton.operators import operator, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

PROMPT: tl.constexpr = tl.constexpr(1 << 30)
"""What an id's count has more where the prompt holds it, as `pegboard_engine.sampling.ops.PROMPT`."""


@kernel
def _penalise(
    logits, rows, counts, places, penalties, ahead, columns, stride, BLOCK: tl.constexpr, AHEAD: tl.constexpr
):
    """ahead: [P, AHEAD] int64, ids that count once more, -1 for none."""
    number = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    found = tl.load(counts + tl.load(places + number) * columns + column, inside, other=0)
    for index in tl.static_range(AHEAD):
        found += (tl.load(ahead + number * AHEAD + index) == column).to(tl.int32)
    base = logits + tl.load(rows + number) * stride + column
    seen = inside & (found > 0)
    old = tl.load(base, seen, other=0.0)
    repetition = tl.load(penalties + 3 * number)
    presence = tl.load(penalties + 3 * number + 1)
    frequency = tl.load(penalties + 3 * number + 2)
    new = tl.where(old > 0, tl.div_rn(old, repetition), old * repetition)
    told = found & (PROMPT - 1)
    new = new - frequency * told.to(tl.float32) - presence * (told > 0).to(tl.float32)
    tl.store(base, new, seen)


def _fake(
    logits: Tensor, rows: Tensor, counts: Tensor, places: Tensor, penalties: Tensor, ahead: Tensor | None
) -> None:
    return None


@operator(
    "penalise_(Tensor(a!) logits, Tensor rows, Tensor counts, Tensor places, Tensor penalties, Tensor? ahead) -> ()",
    _fake,
)
def _launch(
    logits: Tensor, rows: Tensor, counts: Tensor, places: Tensor, penalties: Tensor, ahead: Tensor | None
) -> None:
    columns, count = logits.shape[1], len(rows)
    use = dict(choice("penalise", logits.device))
    block = min(use.pop("BLOCK"), triton.next_power_of_2(columns))
    if count:
        _penalise[(count, triton.cdiv(columns, block))](
            logits,
            rows,
            counts,
            places,
            penalties,
            ahead,
            columns,
            logits.stride(0),
            BLOCK=block,
            AHEAD=0 if ahead is None else ahead.shape[1],
            **use,
        )


def penalise_(
    logits: Tensor,
    rows: Tensor,
    counts: Tensor,
    places: Tensor,
    penalties: Tensor,
    listed: Tensor,
    ahead: Tensor | None = None,
) -> Tensor:
    """[M, V] float32 -> the same memory: op `penalise_`."""
    held = (counts, rows, places, penalties, *(() if ahead is None else (ahead,)))
    if (
        not takes(logits)
        or logits.dtype != torch.float32
        or logits.stride(1) != 1
        or counts.shape[1] != logits.shape[1]
        or not all(tensor.is_contiguous() for tensor in held)
    ):
        kept: Tensor = registered()["penalise_"].function(logits, rows, counts, places, penalties, listed, ahead)
        return kept
    _launch(logits, rows, counts, places, penalties, ahead)
    return logits


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the op where whoever samples has registered it."""
    return {"penalise_": penalise_} if phase != "train" and "penalise_" in registered() else {}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    signature = {"logits": "*fp32", "counts": "*i32", "penalties": "*fp32", "columns": "i32", "stride": "i32"}
    signature |= {"rows": "*i64", "places": "*i64"}
    options = {"num_warps": 4}
    yield Variant("penalise", _penalise, signature, {"ahead": None, "BLOCK": 1024, "AHEAD": 0}, options)
    yield Variant("penalise.ahead", _penalise, signature | {"ahead": "*i64"}, {"BLOCK": 1024, "AHEAD": 4}, options)
