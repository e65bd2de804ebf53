"""Losses over a chunk of logits: log of the sum of exponentials, log-probabilities of targets, and derivatives written over the logits.

The cross-entropy reads each row once from memory: the second pass goes backwards over what the first one left in the cache, so few
programs, each with a row at a time, are better than many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.nn import logits as ops
from pegboard_triton.catalogue import Variant
from pegboard_triton.kernel import kernel
from pegboard_triton.operators import TYPES, on, operator, takes
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

LOGITS = 1 << 29
"""Bytes of logits that a loss has at once, at most; the smallest chunk apart."""


@triton.jit
def _capped(value, softcap, CAP: tl.constexpr):
    """softcap * tanh(value / softcap), where there is one: tanh(u) = 2 sigmoid(2 u) - 1."""
    if CAP:
        value = softcap * (2.0 / (1.0 + tl.exp(-2.0 * value / softcap)) - 1.0)
    return value


@triton.jit
def _block(base, start, last, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """Return a block of a row's capped logits, -inf from `last` on."""
    column = start + tl.arange(0, BLOCK)
    value = _capped(tl.load(base + column, column < last, other=0.0).to(tl.float32), softcap, CAP)
    return tl.where(column < last, value, float("-inf"))


@triton.jit
def _careful_log_sum(base, first, last, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """Return log(sum(exp)) of the columns from `first` to before `last`, scaled by the greatest so far: all threads wait for it."""
    top = -3.0e38
    total = 0.0
    for start in range(first, last, BLOCK):
        value = _block(base, start, last, softcap, CAP, BLOCK)
        higher = tl.maximum(top, tl.max(value, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher), 0)
        top = higher
    return top + tl.log(total)


@triton.jit
def _log_sum(base, first, last, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """As `_careful_log_sum`, scaled by the greatest of the first block, so that no thread waits for another until the end.

    A row that goes far beyond that (by 60: sums of 2^40 such exponentials are still numbers) is read again, carefully.
    """
    value = _block(base, first, last, softcap, CAP, BLOCK)
    scale = tl.maximum(tl.max(value, 0), -1.0e30)
    total = tl.exp(value - scale)
    top = value
    for start in range(first + BLOCK, last, BLOCK):
        value = _block(base, start, last, softcap, CAP, BLOCK)
        total += tl.exp(value - scale)
        top = tl.maximum(top, value)
    norm = scale + tl.log(tl.sum(total, 0))
    if tl.max(top, 0) - scale > 60.0:
        norm = _careful_log_sum(base, first, last, softcap, CAP, BLOCK)
    return norm


@kernel
def logits_sums_kernel(
    logits, targets, norms, picked, columns, stride, part, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr
):
    """norms: [rows, parts], of `part` columns each; the last axis of the grid is the part."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1)
    base = logits + row * stride
    last = tl.minimum((number + 1) * part, columns)
    norm = _log_sum(base, number * part, last, softcap, CAP, BLOCK)
    tl.store(norms + row * tl.num_programs(1) + number, norm)
    if number == 0:
        target = tl.load(targets + row)
        here = (target >= 0) & (target < columns)
        value = _capped(tl.load(base + target, here, other=0.0).to(tl.float32), softcap, CAP)
        tl.store(picked + row, tl.where(here, value, 0.0))


@triton.jit
def _slope_of(base, start, target, norm, factor, columns, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """Overwrite a block of a row with factor * (probability - [target]), by what a capped logit was made from."""
    column = start + tl.arange(0, BLOCK)
    inside = column < columns
    value = _capped(tl.load(base + column, inside, other=0.0).to(tl.float32), softcap, CAP)
    found = tl.exp(value - norm) - tl.where(column == target, 1.0, 0.0)
    if CAP:
        found *= 1.0 - (value / softcap) * (value / softcap)
    tl.store(base + column, (found * factor).to(base.dtype.element_ty), inside)


@kernel
def logits_slope_kernel(
    logits,
    targets,
    norms,
    factors,
    columns,
    stride,
    softcap,
    CAP: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    factor = 1.0
    if FACTOR:
        factor = tl.load(factors + row)
    start = (tl.program_id(0) % blocks) * BLOCK
    target = tl.load(targets + row)
    _slope_of(logits + row * stride, start, target, tl.load(norms + row), factor, columns, softcap, CAP, BLOCK)


@kernel
def cross_entropy_kernel(
    logits, targets, logps, rows, columns, stride, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr
):
    blocks = tl.cdiv(columns, BLOCK)
    program, programs = tl.program_id(0), tl.num_programs(0)
    for turn in range(tl.cdiv(rows - program, programs)):
        row = program.to(tl.int64) + turn * programs
        base = logits + row * stride
        # Read before the sums, whose reductions all warps wait for: none may write over it before every one has it.
        target = tl.load(targets + row)
        picked = _capped(tl.load(base + target).to(tl.float32), softcap, CAP)
        norm = _log_sum(base, 0, columns, softcap, CAP, BLOCK)
        tl.store(logps + row, picked - norm)
        for i in range(blocks):
            _slope_of(base, (blocks - 1 - i) * BLOCK, target, norm, 1.0, columns, softcap, CAP, BLOCK)


@kernel
def scale_kernel(x, factor, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, place < count, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(out + place, value.to(out.dtype.element_ty), place < count)


def _fake_sums(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    found = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return found, torch.empty_like(found)


@operator("logits_sums(Tensor logits, Tensor targets, float softcap) -> (Tensor, Tensor)", _fake_sums)
def _logits_sums(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    rows, columns = logits.shape
    use = dict(choice("logits_sums", logits.device, rows=rows))
    block = min(use.pop("BLOCK"), triton.next_power_of_2(columns))
    part = triton.cdiv(triton.cdiv(columns, use.pop("parts")), block) * block
    parts = triton.cdiv(columns, part)
    norms = logits.new_empty((rows, parts), dtype=torch.float32)
    picked = logits.new_empty(rows, dtype=torch.float32)
    if rows:
        logits_sums_kernel[(rows, parts)](
            logits,
            targets,
            norms,
            picked,
            columns,
            logits.stride(0),
            part,
            softcap,
            CAP=softcap > 0,
            BLOCK=block,
            **use,
        )
    return norms.view(rows) if parts == 1 else norms.logsumexp(1), picked


def _fake_slope(logits: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None, softcap: float) -> None:
    return None


@operator(
    "logits_slope_(Tensor(a!) logits, Tensor targets, Tensor norm, Tensor? factor, float softcap) -> ()", _fake_slope
)
def _logits_slope(logits: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None, softcap: float) -> None:
    rows, columns = logits.shape
    use = dict(choice("logits_slope", logits.device))
    block = min(use.pop("BLOCK"), triton.next_power_of_2(columns))
    programs = rows * triton.cdiv(columns, block)
    if programs:
        logits_slope_kernel[(programs,)](
            logits,
            targets,
            norm,
            factor,
            columns,
            logits.stride(0),
            softcap,
            CAP=softcap > 0,
            FACTOR=factor is not None,
            BLOCK=block,
            **use,
        )


def _fake_cross_entropy(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


@operator("cross_entropy_(Tensor(a!) logits, Tensor targets, float softcap) -> Tensor", _fake_cross_entropy)
def _entropy(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    rows, columns = logits.shape
    logps = logits.new_empty(rows, dtype=torch.float32)
    if rows:
        use = dict(choice("cross_entropy", logits.device, columns=columns))
        block = min(use.pop("BLOCK"), triton.next_power_of_2(columns))
        programs = min(rows, use.pop("programs"))
        cross_entropy_kernel[(programs,)](
            logits, targets, logps, rows, columns, logits.stride(0), softcap, CAP=softcap > 0, BLOCK=block, **use
        )
    return logps


def _fits(logits: Tensor, targets: Tensor) -> bool:
    return (
        takes(logits)
        and logits.dim() == 2
        and logits.shape[1] > 0
        and logits.stride(1) == 1
        and targets.dtype == torch.int64
        and targets.is_contiguous()
    )


def logits_sums(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """[M, V] x [M] -> (log of the sum of exp [M], logit of the target [M]), float32: op `logits_sums`."""
    if not _fits(logits, targets):
        return ops.logits_sums(logits, targets, softcap)
    found: tuple[Tensor, Tensor] = _logits_sums(logits, targets, softcap or 0.0)
    return found


def logits_slope_(
    logits: Tensor, targets: Tensor, norm: Tensor, factor: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """[M, V] -> the same memory: op `logits_slope_`."""
    if not _fits(logits, targets):
        return ops.logits_slope_(logits, targets, norm, factor, softcap)
    wide = None if factor is None else factor.float().contiguous()
    _logits_slope(logits, targets, norm.float().contiguous(), wide, softcap or 0.0)
    return logits


def cross_entropy_(logits: Tensor, targets: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """[M, V] x [M] -> (log p(target) [M] float32, the logits' memory): op `cross_entropy_`."""
    if not _fits(logits, targets):
        return ops.cross_entropy_(logits, targets, softcap)
    return _entropy(logits, targets, softcap or 0.0), logits


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[N, K] + [M, N]^T x [M, K] -> the same memory: op `add_product_`, a half-precision product added to a float32 sum unrounded."""
    # Torch has this for the devices that it calls "cuda", AMD's among them.
    if total.device.type != "cuda" or total.dtype != torch.float32 or a.dtype == torch.float32:
        return ops.add_product_(total, a, b)
    return torch.addmm(total, a.t(), b, out_dtype=torch.float32, out=total)


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x * factor in another dtype: op `scaled`."""
    if not takes(x) or dtype not in TYPES or factor.dtype != torch.float32 or not x.is_contiguous():
        return ops.scaled(x, factor, dtype)
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        with on(x.device):
            scale_kernel[(triton.cdiv(x.numel(), 2048),)](x, factor, out, x.numel(), BLOCK=2048, num_warps=8)
    return out


def loss_rows(columns: int, dtype: torch.dtype) -> int:
    """Return how many rows of logits losses have at once: op `loss_rows`. Each chunk reads and writes the head's float32 gradient."""
    return max(256, min(4096, LOGITS // (columns * dtype.itemsize) // 256 * 256))


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the parts of losses, for models of a dtype that the kernels take."""
    if dtype not in TYPES:
        return {}
    return {
        "loss_rows": loss_rows,
        "scaled": scaled,
        "logits_sums": logits_sums,
        "logits_slope_": logits_slope_,
        "cross_entropy_": cross_entropy_,
        "add_product_": add_product_,
    }


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernels are launched."""
    for dtype in TYPES.values():
        chunk = {"logits": f"*{dtype}", "targets": "*i64", "columns": "i32", "stride": "i32", "softcap": "fp32"}
        for cap in (False, True):
            constants = {"CAP": cap, "BLOCK": 4096}
            end = f"[{dtype}{',capped' * cap}]"
            if not cap:
                scaling = {"x": "*fp32", "factor": "*fp32", "out": f"*{dtype}", "count": "i32"}
                yield Variant(f"scaled[{dtype}]", scale_kernel, scaling, {"BLOCK": 2048}, {"num_warps": 8})
            sums = chunk | {"norms": "*fp32", "picked": "*fp32", "part": "i32"}
            yield Variant(f"logits_sums{end}", logits_sums_kernel, sums, constants, {"num_warps": 8})
            slope = chunk | {"norms": "*fp32", "factors": "*fp32"}
            yield Variant(
                f"logits_slope{end}", logits_slope_kernel, slope, constants | {"FACTOR": True}, {"num_warps": 4}
            )
            entropy = chunk | {"logps": "*fp32", "rows": "i32"}
            yield Variant(f"cross_entropy{end}", cross_entropy_kernel, entropy, constants, {"num_warps": 16})
