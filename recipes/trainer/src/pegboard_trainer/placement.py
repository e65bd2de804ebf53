"""Where the parts of parameters are in a run of several processes, and what follows for gradients and files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from pegboard.nn.parallel import Split
from pegboard_trainer.world import World

BUCKET = 64 << 20
"""Bytes of gradients that are sent at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a tensor that this process has: where it starts in the whole, and whether it is this process's to write.

    rows: where its rows lie in several places, (start in the whole, size) of each run of them; empty for one.
    """

    start: tuple[int, ...]
    whole: tuple[int, ...]
    own: bool
    rows: tuple[tuple[int, int], ...] = ()

    def blocks(self, part: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Yield where in the whole each block of the part begins, and the block."""
        if not self.rows:
            yield self.start, part
        first = 0
        for place, count in self.rows:
            yield (place, *self.start[1:]), part.narrow(0, first, count)
            first += count


@dataclass(frozen=True, slots=True)
class Placement:
    """In one process, everything here and whole.

    splits: parameters of which each tensor-parallel rank has a part. partial: parameters that every such rank has, and whose
    gradients are sums over them. Parameters that are DTensors are sharded over the mesh's "shard", as FSDP leaves them: their
    gradients are summed over the data when a backward pass ends.
    """

    world: World = field(default_factory=World)
    splits: Mapping[str, Split] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()

    @staticmethod
    def local(tensor: Tensor) -> Tensor:
        """Return the part of a parameter, gradient or state that is here, in the same memory."""
        return tensor._local_tensor if isinstance(tensor, DTensor) else tensor

    def group_of(self, name: str, parameter: Tensor) -> Any:
        """Return the processes over which the gradient of a whole parameter adds up; None where it is so after a backward pass."""
        if self.world.mesh is None or isinstance(parameter, DTensor):
            return None
        if name in self.partial:
            return dist.group.WORLD if self.world.size > 1 else self.world.mesh.get_group("tensor")
        return self.world.data_group if self.world.size > 1 else None

    def reduce_parts(self, parameters: Sequence[tuple[str, Parameter]]) -> None:
        """Make the gradients of sharded parameters those of all tensor-parallel ranks, where each of these has a summand."""
        if self.world.mesh is not None and self.partial:
            summed = [(n, p) for n, p in parameters if n in self.partial and isinstance(p, DTensor)]
            group = self.world.mesh.get_group("tensor")
            _sum_all([self.local(p.grad) for _, p in summed if p.grad is not None], group)

    @torch.no_grad()
    def norm(self, parameters: Sequence[tuple[str, Parameter]]) -> Tensor:
        """Return the norm of the gradient over all parameters, a scalar."""
        held = [(n, p) for n, p in parameters if p.grad is not None]
        if self.world.mesh is None:
            return torch.nn.utils.get_total_norm([p.grad for _, p in held if p.grad is not None])
        return self.root([self.square(name, parameter) for name, parameter in held])

    @torch.no_grad()
    def square(self, name: str, parameter: Parameter) -> Tensor:
        """Return this process's share of the square of a gradient's norm, of at least float32: each part counts once, however many
        processes have it.
        """
        assert parameter.grad is not None
        grad = self.local(parameter.grad)
        wide = torch.promote_types(grad.dtype, torch.float32)
        return torch.linalg.vector_norm(grad, dtype=wide).square() / self._copies(name, parameter)

    def root(self, squares: Sequence[Tensor]) -> Tensor:
        """Return the norm to whose square all processes have such shares, a scalar; 0 without any."""
        wide = torch.float64 if any(square.dtype == torch.float64 for square in squares) else torch.float32
        total = torch.stack([square.to(wide) for square in squares]).sum() if squares else torch.zeros(())
        if self.world.mesh is not None:
            dist.all_reduce(total)
        return total.sqrt()

    def _copies(self, name: str, parameter: Tensor) -> int:
        mesh = self.world.mesh
        if mesh is None:
            return 1
        copies = mesh["replicate"].size() * (1 if name in self.splits else mesh["tensor"].size())
        return int(copies if isinstance(parameter, DTensor) else copies * mesh["shard"].size())

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return a whole parameter, or what is beside it (a moving average). All processes ask in the same order."""
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        split = self.splits.get(name)
        if split is None:
            return tensor
        assert self.world.mesh is not None
        return split.gather(tensor, self.world.mesh.get_group("tensor"))

    def piece(self, name: str, parameter: Tensor) -> Piece:
        """Return which part of a parameter is here."""
        start, whole = [0] * parameter.dim(), list(parameter.shape)
        mesh = self.world.mesh
        if mesh is None:
            return Piece(tuple(start), tuple(whole), own=True)
        own = mesh.get_local_rank("replicate") == 0
        if isinstance(parameter, DTensor):
            # FSDP cuts the first dimension as torch.chunk does.
            size = -(-parameter.shape[0] // mesh["shard"].size())
            start[0] = min(size * mesh.get_local_rank("shard"), parameter.shape[0])
        else:
            own = own and mesh.get_local_rank("shard") == 0
        split = self.splits.get(name)
        if split is None:
            own = own and mesh.get_local_rank("tensor") == 0
        elif split.start is None:
            # Rows of a fused layer's parts: `start` counts in what the tensor group gave this rank.
            rows = _within(split.runs, start[0], self.local(parameter).shape[0])
            whole[0] = split.whole
            return Piece((rows[0][0] if rows else 0, *start[1:]), tuple(whole), own, rows)
        else:
            start[split.dim] += split.start
            whole[split.dim] = split.whole
        return Piece(tuple(start), tuple(whole), own)


def _within(runs: Sequence[tuple[int, int]], first: int, count: int) -> tuple[tuple[int, int], ...]:
    """Return what rows first … first + count - 1 of runs, which follow one another, are: (start in the whole, size) again."""
    found, at = [], 0
    for start, size in runs:
        low, high = max(first, at), min(first + count, at + size)
        if low < high:
            found.append((start + low - at, high - low))
        at += size
    return tuple(found)


def _sum_all(tensors: Iterable[Tensor], group: Any) -> None:
    """Sum tensors over a group, in place, many small ones in one message."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in groups of one dtype and at most BUCKET bytes, or of one tensor."""
    open_: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = open_.setdefault(tensor.dtype, [])
        if bucket and sum(t.nbytes for t in bucket) + tensor.nbytes > BUCKET:
            yield bucket
            bucket = open_[tensor.dtype] = []
        bucket.append(tensor)
    yield from (bucket for bucket in open_.values() if bucket)
