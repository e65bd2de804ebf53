"""Tensor parallelism: layers of which each rank of a group holds a part, and what is sent where such layers begin and end.

A family says how its parameters split (`ModelFamily.parallel_plan`); `split_model` makes an empty model the part of one rank. Weights
stay plain tensors, so that kernels, adapters and quantizers see layers that are merely narrower. What is sent stands in the region
around them (Megatron-LM, arXiv:1909.08053; with `sequence`, arXiv:2205.05198), in functions whose gradients are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Newer versions of torch have the same function by another name.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class Split:
    """The part of a parameter that one rank of a group has: equal shares of its rows (dim 0) or columns (dim 1).

    blocks: sizes of the blocks that follow one another, each of which is split by itself (q, k and v of a fused layer).
    index, count: of the rank, and of the group.
    """

    dim: int
    blocks: tuple[int, ...]
    index: int
    count: int

    @property
    def whole(self) -> int:
        """Rows, or columns, of the whole parameter."""
        return sum(self.blocks)

    @property
    def size(self) -> int:
        """Rows, or columns, that this rank has."""
        return sum(span(block, self.index, self.count)[1] for block in self.blocks)

    @property
    def start(self) -> int | None:
        """Where this rank's part begins in the whole; None where it lies in several places."""
        return span(self.blocks[0], self.index, self.count)[0] if len(self.blocks) == 1 else None

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(start in the whole, size) of what this rank has, one for each block."""
        found, first = [], 0
        for block in self.blocks:
            start, size = span(block, self.index, self.count)
            found.append((first + start, size))
            first += block
        return tuple(found)

    def of(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor."""
        parts = []
        for block in tensor.split(self.blocks, self.dim):
            start, size = span(block.shape[self.dim], self.index, self.count)
            parts.append(block.narrow(self.dim, start, size))
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def gather(self, part: Tensor, group: Any) -> Tensor:
        """Return the whole tensor, from the parts of all ranks of the group."""
        sizes = [span(block, self.index, self.count)[1] for block in self.blocks]
        blocks = zip(part.split(sizes, self.dim), self.blocks, strict=True)
        return torch.cat([gather(own, self.dim, whole, group) for own, whole in blocks], self.dim)


def span(whole: int, rank: int, world: int) -> tuple[int, int]:
    """Return start and size of the part of a rank: all parts are equal, but the last ones may be smaller."""
    size = -(-whole // world)
    start = min(size * rank, whole)
    return start, min(size, whole - start)


def gather(part: Tensor, dim: int, whole: int, group: Any) -> Tensor:
    """Return the parts that `span` made, side by side. No gradient."""
    size = -(-whole // dist.get_world_size(group))
    if part.shape[dim] < size:
        missing = list(part.shape)
        missing[dim] = size - part.shape[dim]
        part = torch.cat((part, part.new_zeros(missing)), dim)
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim).narrow(dim, 0, whole)


def summed(value: Tensor, group: Any) -> Tensor:
    """Return the sum over the group. No gradient."""
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value, group=group)
    return value


def scattered(x: Tensor, group: Any) -> Tensor:
    """Return this rank's share of the rows of the sum over the group. No gradient."""
    world, rows = dist.get_world_size(group), x.shape[0]
    size = -(-rows // world)
    if size * world != rows:
        x = torch.cat((x, x.new_zeros(size * world - rows, *x.shape[1:])))
    out = x.new_empty(size, *x.shape[1:])
    _reduce_scatter(out, x.contiguous(), group=group)
    return out[: span(rows, dist.get_rank(group), world)[1]]


class _Copy(torch.autograd.Function):
    """The same values; the gradient is the sum over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return summed(grads[0], ctx.group), None


class _Sum(torch.autograd.Function):
    """The sum over the group; the gradient goes to each as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Rows(torch.autograd.Function):
    """From the rows of one rank to all rows. grad_sums: the gradients of the ranks are parts of a sum, else the same everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, total: int, group: Any, grad_sums: bool) -> Tensor:
        ctx.group, ctx.total, ctx.grad_sums = group, total, grad_sums
        return gather(x, 0, total, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.grad_sums:
            return scattered(grads[0], ctx.group), None, None, None
        return own_rows(grads[0], ctx.group).contiguous(), None, None, None


class _Scatter(torch.autograd.Function):
    """From all rows, which are parts of a sum, to the summed rows of this rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.total = group, x.shape[0]
        return scattered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gather(grads[0], 0, ctx.total, ctx.group), None


class _Whole(torch.autograd.Function):
    """From the rows of a matrix that one rank has to all of it, for work that every rank does alike."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, whole: int, group: Any) -> Tensor:
        ctx.group = group
        return gather(part, 0, whole, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return own_rows(grads[0], ctx.group).contiguous(), None, None


def own_rows(x: Tensor, group: Any) -> Tensor:
    """Return this rank's share of the rows of x."""
    start, size = span(x.shape[0], dist.get_rank(group), dist.get_world_size(group))
    return x.narrow(0, start, size)


@dataclass(frozen=True, slots=True)
class Region:
    """Where layers that are split over a group begin and end. The model of one rank has none.

    group: a process group of torch.distributed. rank, world: this process's number in it, and its size.
    sequence: between regions each rank keeps its share of the rows (tokens) only.
    """

    group: Any
    rank: int
    world: int
    sequence: bool = False

    def enter(self, x: Tensor, total: int) -> Tensor:
        """[rows between regions, H] -> [total, H], before layers that are split by columns."""
        out: Tensor = (
            _Rows.apply(x, total, self.group, True)  # type: ignore[no-untyped-call]
            if self.sequence
            else _Copy.apply(x, self.group)  # type: ignore[no-untyped-call]
        )
        return out

    def leave(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[total, H], parts of a sum -> [rows between regions, H], after layers that are split by rows. bias: [H], added once."""
        out: Tensor = (
            _Scatter.apply(x, self.group)  # type: ignore[no-untyped-call]
            if self.sequence
            else _Sum.apply(x, self.group)  # type: ignore[no-untyped-call]
        )
        return out if bias is None else out + bias

    def finish(self, x: Tensor, total: int) -> Tensor:
        """[rows between regions, H] -> [total, H] at the end of a model; what follows is computed alike on every rank."""
        if not self.sequence:
            return x
        out: Tensor = _Rows.apply(x, total, self.group, False)  # type: ignore[no-untyped-call]
        return out

    def whole(self, part: Tensor, rows: int) -> Tensor:
        """Return the matrix of `rows` rows of which this rank has a part; its gradient is the same on every rank."""
        out: Tensor = _Whole.apply(part, rows, self.group)  # type: ignore[no-untyped-call]
        return out
