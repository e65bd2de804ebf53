"""AdamW (arXiv:1711.05101) in one pass over weights, gradients, moments and masters, with 16-bit ones rounded at random."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton.adamw_kernels import FIELDS, adamw_update, adamw_update_many
from pegboard_triton.catalogue import Variant
from pegboard_triton.operators import INTERPRETED, TYPES, on
from pegboard_triton.tuning import choice

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase

SMALL = 1 << 20
"""Numbers of a tensor up to which it shares a launch with others; a larger one keeps a device busy by itself."""

_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class _Item(NamedTuple):
    """A tensor to be updated, with what belongs to it."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    master: Tensor | None
    step: int
    seed: int

    def fits(self) -> bool:
        """Whether the kernels can update it."""
        tensors = [x for x in self[:5] if isinstance(x, Tensor)]
        return (
            (self.weight.device.type != "cpu" or INTERPRETED)
            and self.weight.dtype in TYPES
            and self.gradient.dtype in TYPES
            and self.exp_avg.dtype in (torch.float32, torch.bfloat16)
            and self.exp_avg_sq.dtype == self.exp_avg.dtype
            and (self.master is None or self.master.dtype == torch.float32)
            and all(tensor.device == self.weight.device and tensor.is_contiguous() for tensor in tensors)
        )

    def kinds(self) -> tuple[Any, ...]:
        """What tensors of one launch have in common."""
        return self.weight.device, self.weight.dtype, self.gradient.dtype, self.exp_avg.dtype, self.master is not None

    def corrections(self, how: Any) -> tuple[float, float]:
        """Return the learning rate over the first moment's correction, and one over the root of the second's."""
        return how.lr / (1 - how.beta1**self.step), (1 - how.beta2**self.step) ** -0.5

    def at_random(self, how: Any) -> bool:
        """Whether the weight itself is rounded at random."""
        return bool(how.at_random) and self.master is None and self.weight.dtype == torch.bfloat16


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

    Small tensors share a launch. Those of other dtypes (float64), or that do not lie densely, are left to torch.
    """
    others: list[_Item] = []
    small: dict[tuple[Any, ...], list[_Item]] = {}
    columns = weights, gradients, exp_avgs, exp_avg_sqs, masters, steps, seeds
    for item in map(_Item, *columns):
        if not item.fits():
            others.append(item)
        elif item.weight.numel() <= SMALL:
            small.setdefault(item.kinds(), []).append(item)
        else:
            _launch(item, how, factor)
    for items in small.values():
        _launch_many(items, how, factor)
    if others:
        registered()["adamw_"].function(*map(list, zip(*others, strict=True)), how, factor)


def _launch(item: _Item, how: Any, factor: Tensor | None) -> None:
    use = dict(choice("adamw", item.weight.device))
    block, count = use.pop("BLOCK"), item.weight.numel()
    rate, correction = item.corrections(how)
    with on(item.weight.device):
        adamw_update[(triton.cdiv(count, block),)](
            item.weight,
            item.gradient,
            item.exp_avg,
            item.exp_avg_sq,
            item.master,
            factor,
            count,
            rate,
            1 - how.lr * how.weight_decay,
            how.beta1,
            how.beta2,
            how.eps,
            correction,
            _signed(item.seed & 0xFFFFFFFF),
            _signed(item.seed >> 32),
            MASTER=item.master is not None,
            FACTOR=factor is not None,
            RANDOM=item.at_random(how),
            BLOCK=block,
            **use,
        )


def _launch_many(items: Sequence[_Item], how: Any, factor: Tensor | None) -> None:
    """Update tensors that are alike in `kinds`."""
    first, block = items[0], 1024
    table, programs = np.empty((len(items), FIELDS.value), np.int64), 0
    counts = [triton.cdiv(item.weight.numel(), block) for item in items]
    for i, item in enumerate(items):
        rate, correction = item.corrections(how)
        addresses = [0 if x is None else x.data_ptr() for x in item[:5]]
        table[i] = *addresses, item.weight.numel(), programs, _word(rate), item.seed, _word(correction)
        programs += counts[i]
    if not programs:
        return
    device = first.weight.device
    owners = np.arange(len(items), dtype=np.int32).repeat(counts)
    with on(device):
        adamw_update_many[(programs,)](
            torch.from_numpy(table).to(device, non_blocking=True),
            torch.from_numpy(owners).to(device, non_blocking=True),
            factor,
            1 - how.lr * how.weight_decay,
            how.beta1,
            how.beta2,
            how.eps,
            WEIGHT=_KINDS[first.weight.dtype],
            GRADIENT=_KINDS[first.gradient.dtype],
            MOMENT=_KINDS[first.exp_avg.dtype],
            MASTER=first.master is not None,
            FACTOR=factor is not None,
            RANDOM=first.at_random(how),
            BLOCK=block,
            num_warps=4,
        )


def _word(value: float) -> int:
    """Return the bits of a float32 as the int32 that has them."""
    found: int = struct.unpack("i", struct.pack("f", value))[0]
    return found


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
        name = f"[{weight},{moment}{',master' * master}]"
        yield Variant(f"adamw{name}", adamw_update, signature, constants, {"num_warps": 4})
        kinds = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}
        typed = {key: value for key, value in constants.items() if key != "master"}
        typed |= {"WEIGHT": kinds[weight], "GRADIENT": kinds[weight], "MOMENT": kinds[moment]}
        many = dict.fromkeys(("decay", "beta1", "beta2", "eps"), "fp32")
        many |= {"table": "*i64", "owners": "*i32", "factor": "*fp32"}
        yield Variant(f"adamw.many{name}", adamw_update_many, many, typed, {"num_warps": 4})
