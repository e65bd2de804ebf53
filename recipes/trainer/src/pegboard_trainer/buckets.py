"""Sums of gradients over the processes that have whole parameters, while a backward pass goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from pegboard_trainer.placement import Placement

BUCKET = 32 << 20
"""Bytes of gradients that are sent at a time."""

Done = Callable[[str, Parameter], None]


@dataclass(slots=True, eq=False)
class _Bucket:
    """Gradients of one dtype that are sent together over a group, end to end.

    waiting: how many have not come yet. missing: whether some will not, here; counts: how many processes have each, sent with them.
    """

    members: list[tuple[str, Parameter]]
    group: Any
    waiting: int = 0
    missing: bool = False
    counts: Tensor = field(default_factory=lambda: torch.empty(0))
    work: Any = None


class Buckets:
    """Owns what is on its way. Buckets have the same members and are sent in the same order in every process, so that it does not
    matter in which order gradients come, and whether a process has some of them at all.

    update: called for each parameter once its gradient is that of all processes, of which then only a few exist at a time.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, Parameter]],
        placement: Placement,
        *,
        size: int = BUCKET,
        update: Done | None = None,
    ) -> None:
        self._update = update
        self._buckets = list(_divide(parameters, placement, size))
        self._sent = self._done = 0
        self._armed = False
        self._reset()
        for bucket in self._buckets:
            for _, parameter in bucket.members:
                parameter.register_post_accumulate_grad_hook(self._hook(bucket))

    def arm(self) -> None:
        """Send from now on what is complete: the next backward pass is the last one of the step."""
        self._armed = True

    @torch.no_grad()
    def finish(self) -> None:
        """Send what is left and wait for everything: the gradients are then those of all processes."""
        while self._sent < len(self._buckets):
            self._send()
        while self._done < self._sent:
            self._complete()
        self._reset()

    def _reset(self) -> None:
        self._sent = self._done = 0
        self._armed = False
        for bucket in self._buckets:
            bucket.waiting = len(bucket.members)

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def came(_: Tensor) -> None:
            if not self._armed:
                return
            bucket.waiting -= 1
            while self._sent < len(self._buckets) and not self._buckets[self._sent].waiting:
                self._send()
                # One stays on its way while the next gradients are computed.
                while self._update is not None and self._sent - self._done > 1:
                    self._complete()

        return came

    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        self._sent += 1
        parameters = [parameter for _, parameter in bucket.members]
        missing = [number for number, p in enumerate(parameters) if p.grad is None]
        there = parameters[0].new_ones(len(parameters))
        for number in missing:
            there[number] = 0
            parameters[number].grad = torch.zeros_like(parameters[number])
        flat = torch.cat([*(p.grad.reshape(-1) for p in parameters if p.grad is not None), there])
        *views, bucket.counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, view in zip(parameters, views, strict=True):
            parameter.grad = view.view(parameter.shape)  # in the place of what it was copied from
        bucket.missing = bool(missing)
        bucket.work = dist.all_reduce(flat, group=bucket.group, async_op=True)

    def _complete(self) -> None:
        bucket = self._buckets[self._done]
        self._done += 1
        bucket.work.wait()
        if bucket.missing:
            # What no process has a gradient of is left alone, as in one process. A process that has all of them need not look.
            for (_, parameter), count in zip(bucket.members, bucket.counts.tolist(), strict=True):
                parameter.grad = parameter.grad if count else None
        bucket.work = None
        if self._update is not None:
            for name, parameter in bucket.members:
                if parameter.grad is not None:
                    self._update(name, parameter)


def _divide(parameters: Iterable[tuple[str, Parameter]], placement: Placement, size: int) -> Iterable[_Bucket]:
    """Yield buckets of at most `size` bytes, or of one parameter, the last parameters first: so gradients come."""
    open_: dict[tuple[torch.dtype, int], _Bucket] = {}
    for name, parameter in reversed(list(parameters)):
        group = placement.group_of(name, parameter)
        if group is None:
            continue
        key = (parameter.dtype, id(group))
        bucket = open_.get(key)
        if bucket is not None and sum(p.nbytes for _, p in bucket.members) + parameter.nbytes > size:
            yield open_.pop(key)
            bucket = None
        if bucket is None:
            bucket = open_[key] = _Bucket([], group)
        bucket.members.append((name, parameter))
    yield from open_.values()
