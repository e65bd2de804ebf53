"""AdamW (arXiv:1711.05101) in one pass over weights, gradients, moments and masters, with 16-bit ones rounded at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.catalogue import Variant
from pegboard_triton.operators import INTERPRETED, TYPES, on
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase


@triton.jit
def _mixed(x):
    """A hash of 32 bits in which each bit of the input changes half of those of the result (Wellons, 2018)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _rounded(value, noise):
    """Return float32 as bfloat16: 16 random bits are added, and the lower half is cut; what is no number stays none."""
    bits = value.to(tl.uint32, bitcast=True)
    bits = tl.where(value == value, bits + noise, bits | 0x400000)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def _update(
    weight,
    gradient,
    exp_avg,
    exp_avg_sq,
    master,
    factor,
    count,
    rate,
    decay,
    beta1,
    beta2,
    eps,
    correction,
    seed_low,
    seed_high,
    MASTER: tl.constexpr,
    FACTOR: tl.constexpr,
    RANDOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """rate: the learning rate over the first moment's correction. correction: one over the root of the second's. decay: 1 - lr * decay.

    RANDOM: whether the weight, a bfloat16 without a master, is rounded at random; bfloat16 moments always are.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load((master if MASTER else weight) + place, inside, other=0.0).to(tl.float32)
    slope = tl.load(gradient + place, inside, other=0.0).to(tl.float32)
    if FACTOR:
        slope *= tl.load(factor).to(tl.float32)
    first = tl.load(exp_avg + place, inside, other=0.0).to(tl.float32)
    second = tl.load(exp_avg_sq + place, inside, other=0.0).to(tl.float32)
    first += (1.0 - beta1) * (slope - first)
    second = beta2 * second + (1.0 - beta2) * slope * slope
    value = value * decay - rate * first / (tl.sqrt(second) * correction + eps)
    narrow: tl.constexpr = exp_avg.dtype.element_ty == tl.bfloat16
    if RANDOM or narrow:
        low, high = seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True)
        bits = _mixed(_mixed(place.to(tl.uint32) + low) ^ high)
    if MASTER:
        tl.store(master + place, value, inside)
    if RANDOM:
        tl.store(weight + place, _rounded(value, bits & 0xFFFF), inside)
    else:
        tl.store(weight + place, value.to(weight.dtype.element_ty), inside)
    if narrow:
        tl.store(exp_avg + place, _rounded(first, bits >> 16), inside)
        tl.store(exp_avg_sq + place, _rounded(second, _mixed(bits ^ 0x9E3779B9) & 0xFFFF), inside)
    else:
        tl.store(exp_avg + place, first, inside)
        tl.store(exp_avg_sq + place, second, inside)


def adamw_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masters: Sequence[Tensor | None],
    steps: Sequence[int],
    seeds: Sequence[int],
    how: Any,
    factor: Tensor | None = None,
) -> None:
    """Op `adamw_` of pegboard-trainer, in place: float32 within, each tensor read and written once, the same random bits.

    Tensors of other dtypes (float64), or that do not lie densely, are left to torch, one by one.
    """
    others: list[int] = []
    for i, (weight, gradient, master) in enumerate(zip(weights, gradients, masters, strict=True)):
        if not _fits(weight, gradient, exp_avgs[i], exp_avg_sqs[i], master):
            others.append(i)
            continue
        count = weight.numel()
        if not count:
            continue
        use = dict(choice("adamw", weight.device))
        block = use.pop("BLOCK")
        at_random = how.at_random and master is None and weight.dtype == torch.bfloat16
        with on(weight.device):
            _update[(triton.cdiv(count, block),)](
                weight,
                gradient,
                exp_avgs[i],
                exp_avg_sqs[i],
                master,
                factor,
                count,
                how.lr / (1 - how.beta1 ** steps[i]),
                1 - how.lr * how.weight_decay,
                how.beta1,
                how.beta2,
                how.eps,
                (1 - how.beta2 ** steps[i]) ** -0.5,
                _signed(seeds[i] & 0xFFFFFFFF),
                _signed(seeds[i] >> 32),
                MASTER=master is not None,
                FACTOR=factor is not None,
                RANDOM=at_random,
                BLOCK=block,
                **use,
            )
    if others:
        rest = (
            [values[i] for i in others] for values in (weights, gradients, exp_avgs, exp_avg_sqs, masters, steps, seeds)
        )
        registered()["adamw_"].function(*rest, how, factor)


def _fits(weight: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None) -> bool:
    tensors = [weight, gradient, exp_avg, exp_avg_sq, *([] if master is None else [master])]
    return (
        (weight.device.type != "cpu" or INTERPRETED)
        and weight.dtype in TYPES
        and gradient.dtype in TYPES
        and exp_avg.dtype in (torch.float32, torch.bfloat16)
        and exp_avg_sq.dtype == exp_avg.dtype
        and (master is None or master.dtype == torch.float32)
        and all(tensor.device == weight.device and tensor.is_contiguous() for tensor in tensors)
    )


def _signed(bits: int) -> int:
    """Return 32 bits as the int32 that has them."""
    return bits - (1 << 32) if bits >> 31 else bits


def replacements(phase: Phase, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return the update where the distribution that registers it is in use, for models of a dtype that the kernel takes."""
    return {"adamw_": adamw_} if phase == "train" and dtype in TYPES and "adamw_" in registered() else {}


def variants() -> Iterator[Variant]:
    """Yield the ways in which the kernel is launched."""
    numbers = dict.fromkeys(("rate", "decay", "beta1", "beta2", "eps", "correction"), "fp32")
    numbers |= {"count": "i32", "seed_low": "i32", "seed_high": "i32", "factor": "*fp32"}
    for weight, moment, master in (
        ("bf16", "bf16", False),
        ("bf16", "fp32", False),
        ("bf16", "fp32", True),
        ("fp16", "fp32", True),
        ("fp32", "fp32", False),
    ):
        signature = numbers | {"weight": f"*{weight}", "gradient": f"*{weight}"}
        signature |= {"exp_avg": f"*{moment}", "exp_avg_sq": f"*{moment}"}
        constants: dict[str, Any] = {"MASTER": master, "FACTOR": True, "BLOCK": 1024}
        constants["RANDOM"] = weight == "bf16" and not master
        if master:
            signature["master"] = "*fp32"
        else:
            constants["master"] = None
        name = f"adamw[{weight},{moment}{',master' * master}]"
        yield Variant(name, _update, signature, constants, {"num_warps": 4})
