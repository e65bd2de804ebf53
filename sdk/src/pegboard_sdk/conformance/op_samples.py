"""Inputs for each op of the core, on which a platform's kernels are compared with the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Sample = tuple[Any, ...]


class Draw:
    """Random tensors of one dtype on one device, drawn on the host so that every device gets the same."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype, self.device = dtype, device
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Return normal values times `scale`."""
        return (torch.randn(shape, generator=self.generator) * scale).to(self.device, self._dtype)

    def ids(self, count: int, high: int) -> Tensor:
        """Return int64 ids below `high`."""
        return torch.randint(high, (count,), generator=self.generator).to(self.device)

    def distinct(self, rows: int, width: int) -> Tensor:
        """Return values of which no two in a row are equal, in any dtype: multiples of an eighth, for at most 256 of them."""
        order = torch.rand((rows, width), generator=self.generator).argsort(-1)
        return ((order - width // 2) / 8).to(self.device, self._dtype)

    def angles(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin, [count, 1, width], as the op `rotary` takes them."""
        half = torch.randn(count, 1, width // 2, generator=self.generator) * 3
        cos, sin = half.cos(), half.sin()
        pair = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return pair[0].to(self.device, self._dtype), pair[1].to(self.device, self._dtype)


def _linear(draw: Draw) -> list[Sample]:
    samples: list[Sample] = []
    for rows in (1, 3, 8, 33):
        samples += [(draw.tensor(rows, 48), draw.tensor(40, 48, scale=0.1), bias) for bias in (None, draw.tensor(40))]
    # What backward passes and fused groups give: transposed weights, and rows that do not lie side by side.
    samples.append((draw.tensor(8, 40), draw.tensor(40, 48, scale=0.1).t(), None))
    samples.append((draw.tensor(8, 96)[:, :48], draw.tensor(40, 48, scale=0.1), None))
    samples.append((draw.tensor(0, 48), draw.tensor(40, 48), None))
    return samples


def _rotary(draw: Draw) -> list[Sample]:
    whole = [(draw.tensor(rows, 6, 16), *draw.angles(rows, 16)) for rows in (1, 7)]
    part = (draw.tensor(7, 6, 16), *draw.angles(7, 8))
    strided = (draw.tensor(7, 9, 16)[:, :6], *draw.angles(7, 16))
    return [*whole, part, strided]


def _norms(draw: Draw) -> list[Sample]:
    weight = draw.tensor(48).abs()
    return [(draw.tensor(*shape), weight, 1e-5) for shape in ((1, 48), (7, 48), (5, 4, 48))]


def _added(draw: Draw) -> list[Sample]:
    return [(draw.tensor(rows, 48), draw.tensor(rows, 48), draw.tensor(48).abs(), 1e-5) for rows in (1, 7)]


def _embedding(draw: Draw) -> list[Sample]:
    return [(draw.ids(count, 11), draw.tensor(11, 48)) for count in (0, 1, 9)]


def _gated(draw: Draw) -> list[Sample]:
    return [(draw.tensor(1, 80),), (draw.tensor(7, 80, scale=4.0),)]


def _normed_products(draw: Draw) -> list[Sample]:
    return [
        (
            draw.tensor(rows, 48),
            draw.tensor(rows, 48),
            draw.tensor(48).abs(),
            1e-5,
            offset,
            draw.tensor(40, 48, scale=0.1),
            bias,
        )
        for rows, offset, bias in ((1, False, None), (1, True, draw.tensor(40)), (7, False, draw.tensor(40)))
    ]


def _gated_products(draw: Draw) -> list[Sample]:
    return [
        (draw.tensor(rows, 80), draw.tensor(48, 40, scale=0.1), bias, activation)
        for rows, bias, activation in ((1, None, "silu"), (1, draw.tensor(48), "gelu_tanh"), (7, None, "silu"))
    ]


def _route(draw: Draw) -> list[Sample]:
    return [(draw.distinct(rows, experts), k, again) for rows, experts, k, again in _ROUTES]


_ROUTES = ((1, 8, 2, True), (9, 8, 2, False), (33, 60, 4, True), (0, 8, 2, True), (5, 3, 3, False))


def _chosen(draw: Draw, rows: int, experts: int, k: int, used: int | None = None) -> Tensor:
    """Return ids [rows, k], each row's all different, of the first `used` experts only."""
    order = torch.rand((rows, used or experts), generator=draw.generator).argsort(-1)
    return order[:, :k].to(draw.device)


def _moe(draw: Draw) -> list[Sample]:
    samples: list[Sample] = []
    for rows, experts, k, used, kind in (
        (1, 8, 2, None, torch.int64),
        (7, 8, 2, 3, torch.int32),  # experts without a row
        (33, 5, 1, None, torch.int64),
        (40, 16, 4, None, torch.int32),
        (0, 8, 2, None, torch.int64),
    ):
        ids = _chosen(draw, rows, experts, k, used).to(kind)
        weights = draw.tensor(rows, k).abs().float() / k
        gate_up, down = draw.tensor(experts, 64, 48, scale=0.15), draw.tensor(experts, 48, 32, scale=0.15)
        samples.append((draw.tensor(rows, 48), gate_up, down, ids, weights, "silu"))
    samples.append((*samples[1][:-1], "gelu_tanh"))
    return samples


def _grouped(draw: Draw) -> list[Sample]:
    weight = draw.tensor(4, 40, 48, scale=0.1)
    ends = [
        torch.tensor(found, dtype=torch.int32) for found in ((2, 2, 7, 7), (1, 1, 1, 1), (0, 0, 0, 0), (8, 16, 24, 32))
    ]
    return [(draw.tensor(int(found[-1]), 48), weight, found.to(draw.device)) for found in ends]


def _logits(draw: Draw, rows: int, vocab: int) -> tuple[Tensor, Tensor]:
    return draw.tensor(rows, vocab, scale=3.0), draw.ids(rows, vocab)


def _whole_logits(draw: Draw) -> list[Sample]:
    sizes = ((1, 40), (7, 1001), (0, 40))
    return [(*_logits(draw, *size), softcap) for size in sizes for softcap in (None, 5.0)]


def _logits_with_others(draw: Draw) -> list[Sample]:
    """Some targets are columns of another rank."""
    samples = [_logits(draw, *size) for size in ((3, 40), (7, 1001))]
    return [(logits, targets - 20, softcap) for logits, targets in samples for softcap in (None, 5.0)]


def _slopes(draw: Draw) -> list[Sample]:
    return [
        (logits, targets, logits.double().logsumexp(-1).float() + 0.5, factor, softcap)
        for logits, targets, softcap in _logits_with_others(draw)
        for factor in (None, draw.tensor(len(targets)).float())
    ]


def _scalings(draw: Draw) -> list[Sample]:
    factor = torch.tensor(0.3, device=draw.device)
    sizes = ((0, 3), (7, 5), (3, 1000))
    return [
        (x, factor, draw.tensor(1).dtype) for size in sizes for x in (draw.tensor(*size), draw.tensor(*size).float())
    ]


def _added_products(draw: Draw) -> list[Sample]:
    samples: list[Sample] = []
    for rows in (1, 33):
        operands = draw.tensor(rows, 40), draw.tensor(rows, 48, scale=0.1)
        samples += [(draw.tensor(40, 48), *operands), (draw.tensor(40, 48).float(), *operands)]
    return samples


def _updates(draw: Draw) -> list[Sample]:
    """AdamW of three tensors, with float32 masters and without; those rounded at random are compared where ops are tested bit by bit."""
    how = SimpleNamespace(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.1, at_random=False)
    shapes, samples = [(5, 7), (33,), (1,)], []
    for wide in (False, True):
        weights = [draw.tensor(*shape) for shape in shapes]
        first, second = ([draw.tensor(*shape).abs().float() * 0.1 for shape in shapes] for _ in range(2))
        masters = [w.float() if wide and w.dtype != torch.float32 else None for w in weights]
        gradients = [draw.tensor(*shape) for shape in shapes]
        factor = torch.tensor(0.5, device=weights[0].device) if wide else None
        samples.append((weights, gradients, first, second, masters, [1, 2, 30], [3, 4, 5 << 40], how, factor))
    return samples


SAMPLES: Mapping[str, Callable[[Draw], list[Sample]]] = {
    "linear": _linear,
    "embedding": _embedding,
    "rms_norm": _norms,
    "offset_rms_norm": _norms,
    "add_rms_norm": _added,
    "rotary": _rotary,
    "silu_mul": _gated,
    "gelu_tanh_mul": _gated,
    "moe_route": _route,
    "grouped_linear": _grouped,
    "moe": _moe,
    "loss_rows": lambda draw: [],  # a number of rows, which may be any
    "logits_sums": _logits_with_others,
    "logits_slope_": _slopes,
    "cross_entropy_": _whole_logits,
    "add_product_": _added_products,
    "scaled": _scalings,
    "norm_linear": _normed_products,
    "gated_linear": _gated_products,
    "adamw_": _updates,
}
"""Op name -> its samples: of the core's ops, and of the trainer's `adamw_`, which platforms compute in one pass."""

GRADIENTS: Mapping[str, int] = {"rotary": 1}
"""How many floating-point inputs of an op, from the first, have a gradient of their own; all of those that are not here.

The halves of a rotation's angles are tied, and an implementation may read either.
"""
