"""The processes of a run, and how one of them talks to the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pegboard.errors import PegboardError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """One process's place. A run in one process is the world of size 1: the same code, and nothing is sent.

    rank, size: among those that see different data. process, processes: among all.
    index: of its device among those of its machine. mesh: dimensions "replicate", "shard" and "tensor"; None in one process. Ranks
    of one tensor group see the same data. own: whether the process group was made here, and is closed here.
    """

    rank: int = 0
    size: int = 1
    process: int = 0
    processes: int = 1
    index: int = 0
    mesh: DeviceMesh | None = None
    data_group: Any = None
    host_group: Any = None
    own: bool = False

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once: the run's files and lines for people."""
        return self.process == 0

    @property
    def tensor_rank(self) -> int:
        """This process's place among those that compute each layer together, and see the same data."""
        return 0 if self.mesh is None else int(self.mesh.get_local_rank("tensor"))

    @property
    def tensor_size(self) -> int:
        """How many processes compute each layer together."""
        return 1 if self.mesh is None else int(self.mesh["tensor"].size())

    def tensor_parts(self, value: T) -> list[T]:
        """Return what each process of this one's tensor group has, by rank. All of them ask at the same place."""
        if self.tensor_size == 1:
            return [value]
        assert self.mesh is not None
        found: list[Any] = [None] * self.tensor_size
        dist.all_gather_object(found, value, group=self.mesh.get_group("tensor"))
        return found

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks that see different data, of the same shape, without waiting for the device."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, group=self.data_group)
        return value

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set in any process. All processes ask at the same place."""
        if self.processes == 1:
            return list(flags)
        table = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=self.host_group)
        return [bool(flag) for flag in table.tolist()]

    def share(self, number: int) -> int:
        """Return the first process's number."""
        if self.processes == 1:
            return number
        table = torch.tensor([number], dtype=torch.int64)
        dist.broadcast(table, src=0, group=self.host_group)
        return int(table.item())

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` in every process, wait for all, and return what it gave here; when it fails in one, all raise.

        Otherwise those that did not fail would wait for the others for ever.
        """
        if self.processes == 1:
            return work()
        done: list[T] = []
        error: BaseException | None = None
        try:
            done.append(work())
        except Exception as caught:
            error = caught
        (failed,) = self.any([error is not None])
        if error is not None:
            raise error
        if failed:
            raise PegboardError("another process of the run failed", fix="see its error")
        return done[0]

    def close(self) -> None:
        """Leave the other processes."""
        if self.own and dist.is_initialized():
            with suppress(Exception):  # what failed before counts more
                dist.destroy_process_group()
