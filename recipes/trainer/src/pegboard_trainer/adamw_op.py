"""Op `adamw_`: one update of many tensors, which a platform may compute in a single pass over each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pegboard.ops import register

FUSED = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True, slots=True)
class AdamWStep:
    """What an update of many tensors has in common. at_random: bfloat16 weights without a master are rounded up or down in proportion."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    at_random: bool = False


@register(
    "adamw_",
    "(weights, gradients, exp_avgs, exp_avg_sqs [lists of dense tensors], masters [list of float32 | None], steps [ints from 1], "
    "seeds [ints of 63 bits], how AdamWStep, factor [] | None) -> None: AdamW in place (arXiv:1711.05101) with factor * gradient, "
    "on the masters where there are; bfloat16 moments, and weights if `how` says so, are rounded with the bits of `random_bits`",
    differentiable=False,
)
def adamw_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masters: Sequence[Tensor | None],
    steps: Sequence[int],
    seeds: Sequence[int],
    how: AdamWStep,
    factor: Tensor | None = None,
) -> None:
    """Through torch's fused update where the device has one: what is narrower than float32 is widened for it and rounded again."""
    wide = [_widened(weight) if master is None else master for weight, master in zip(weights, masters, strict=True)]
    grads = [gradient.to(value.dtype).contiguous() for gradient, value in zip(gradients, wide, strict=True)]
    if factor is not None:
        grads = [gradient * factor.to(gradient) for gradient in grads]
    first, second = ([_widened(moment) for moment in moments] for moments in (exp_avgs, exp_avg_sqs))
    device = wide[0].device
    adamw(
        wide,
        grads,
        first,
        second,
        [],
        [torch.tensor(step - 1.0, device=device) for step in steps],
        foreach=False,
        fused=device.type in FUSED,
        amsgrad=False,
        beta1=how.beta1,
        beta2=how.beta2,
        lr=how.lr,
        weight_decay=how.weight_decay,
        eps=how.eps,
        maximize=False,
    )
    for i, (weight, value, seed) in enumerate(zip(weights, wide, seeds, strict=True)):
        at_random = how.at_random and masters[i] is None and weight.dtype == torch.bfloat16
        drawn = at_random or first[i] is not exp_avgs[i] or second[i] is not exp_avg_sqs[i]
        bits = random_bits(value.numel(), seed, device) if drawn else value
        if weight is not value:
            _keep(weight, value, bits & 0xFFFF if at_random else None)
        if first[i] is not exp_avgs[i]:
            _keep(exp_avgs[i], first[i], (bits >> 16) & 0xFFFF)
        if second[i] is not exp_avg_sqs[i]:
            _keep(exp_avg_sqs[i], second[i], _mixed(bits ^ _signed(0x9E3779B9)) & 0xFFFF)


def random_bits(count: int, seed: int, device: torch.device) -> Tensor:
    """Return [count] int32, 32 random bits for each element of a tensor laid end to end: a hash of its number and the seed.

    Two rounds of an integer hash that changes half of all bits for each changed one (Wellons, "Prospecting for hash functions",
    2018), with half of the seed put in before each. Numbers repeat after 2^32 elements of one tensor.
    """
    index = torch.arange(count, device=device).to(torch.int32)
    return _mixed(_mixed(index + _signed(seed & 0xFFFFFFFF)) ^ _signed(seed >> 32))


def round_at_random(target: Tensor, value: Tensor, seed: int) -> None:
    """Write float32 `value` into bfloat16 `target`, up or down with the probability that makes the mean exact."""
    _keep(target, value, random_bits(value.numel(), seed, value.device) & 0xFFFF)


def _keep(target: Tensor, value: Tensor, noise: Tensor | None) -> None:
    """Write a value into a narrower tensor. noise: [count] 16 random bits each; None to round to the nearest.

    A bfloat16 is the upper half of a float32: adding a uniform 16-bit number to the bits and cutting the lower half does it.
    """
    if noise is None:
        target.copy_(value)
        return
    value = value.float().contiguous()
    rounded = (value.view(torch.int32) + noise.view(value.shape)).bitwise_and_(-65536).view(torch.float32)
    target.copy_(torch.where(torch.isnan(value), value, rounded))


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * _signed(0x7FEB352D)
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def _signed(bits: int) -> int:
    """Return 32 bits as the int32 that has them."""
    return bits - (1 << 32) if bits >> 31 else bits


def _widened(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32; itself where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
