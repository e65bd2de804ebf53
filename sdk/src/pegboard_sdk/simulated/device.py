"""A device whose operations run on the host at once, while they are counted as if they were given to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pegboard_sdk.simulated import kinds
from pegboard_sdk.simulated.counted import Counted
from pegboard_sdk.simulated.events import SimulatedModule, event_class
from pegboard_sdk.simulated.tensor import DEVICE, Far

_aten = torch.ops.aten


@dataclass(slots=True)
class _Done:
    """A piece of captured work: what to call, and the tensors that it returned."""

    call: Callable[[], Any]
    kept: list[Tensor]


class SimulatedGraph:
    """Captured work, done again on the memory of the first time. counted: what is in it."""

    def __init__(self, owner: SimulatedDevice, done: Sequence[_Done], counted: Counted) -> None:
        self._owner, self._done, self.counted = owner, done, counted

    def replay(self) -> None:
        """Give it to the device as one launch."""
        self._owner.note("graph")
        for one in self._done:
            fresh = [x for x in tree_leaves(one.call()) if isinstance(x, Tensor)]
            for old, new in zip(one.kept, fresh, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class SimulatedDevice:
    """One device. Use it as a context, within which tensors can be made on `device`; one at a time in a process.

    dry: kernels that are no operation of torch are counted and not run, which takes a small part of the time; memory without values,
    which is what they would have written to, holds zeros.
    given: launches and copies so far. Of copies to the host that nobody waited for, the first `arrived` of `arriving` are over: others
    hold numbers that are none. graphs: what was captured, in order.
    """

    device = DEVICE

    def __init__(self, *, dry: bool = False) -> None:
        self.dry = dry
        self.given = self.arriving = self.arrived = 0
        self.captures = False
        self.graphs: list[SimulatedGraph] = []
        self._counts: list[Counted] = []
        self._coming: list[tuple[Tensor, Tensor]] = []
        self._recorded: list[_Done] | None = None
        self._quiet = False
        # Kept, so that nothing else gets their addresses.
        self._pinned: dict[int, Tensor] = {}
        self._mode = _Mode(self)
        self._stack: ExitStack | None = None

    def __enter__(self) -> SimulatedDevice:
        if hasattr(torch, DEVICE.type):
            raise RuntimeError(f"torch has a module for {DEVICE.type!r}: is another simulated device in use?")
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(torch, DEVICE.type, SimulatedModule(self), create=True))
            stack.enter_context(mock.patch.object(torch, "Event", event_class(self, torch.Event)))
            # What `torch.tensor` makes of numbers is then copied to the device by an operation, as it is to real ones.
            before = torch._C._only_lift_cpu_tensors()
            torch._C._set_only_lift_cpu_tensors(True)
            stack.callback(torch._C._set_only_lift_cpu_tensors, before)
            stack.enter_context(self._mode)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._stack is not None
        self._stack.close()
        self._pinned.clear()
        self._coming.clear()
        self.graphs.clear()

    @contextmanager
    def count(self) -> Iterator[Counted]:
        """Count what is given within the context."""
        counted = Counted()
        self._counts.append(counted)
        try:
            yield counted
        finally:
            self._counts = [one for one in self._counts if one is not counted]

    def launch(self, name: str, kernel: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Run a kernel that is no operation of torch, with what its tensors are on the host; for whoever intercepts launches."""
        near_args, near_kwargs = tree_map(_near, (tuple(args), dict(kwargs)))

        def call() -> None:
            quiet, self._quiet = self._quiet, True
            try:
                kernel(*near_args, **near_kwargs)
            finally:
                self._quiet = quiet

        self.note(name)
        if self.dry:
            return
        call()
        if self._recorded is not None and not self._quiet:
            self._recorded.append(_Done(call, []))

    def capture(self, work: Callable[[], None]) -> SimulatedGraph:
        """Run work as if it was captured, behind a run that warms up. Raises RuntimeError where it waits for the device."""
        work()
        self.captures, self._recorded = True, []
        try:
            with self.count() as counted:
                work()
            self.graphs.append(SimulatedGraph(self, self._recorded, counted))
            return self.graphs[-1]
        finally:
            self.captures, self._recorded = False, None

    def note(self, name: str) -> None:
        """Count a launch."""
        if not self._quiet:
            self.given += 1
            for counted in self._counts:
                counted.launches[name] += 1

    def wait(self, cause: str, behind: int | None = None) -> None:
        """Count that the host waits. behind: what was given after that which it waits for."""
        if self._quiet:
            return
        if self.captures:
            raise RuntimeError(f"the host waits ({cause}) for work that is being captured, and does not run")
        for counted in self._counts:
            counted.waits[cause] += 1
            if behind is not None:
                counted.behind.append(behind)

    def arrive(self, number: int) -> None:
        """Let the first `number` copies to the host be over."""
        while self.arrived < number:
            target, value = self._coming.pop(0)
            with torch.inference_mode():
                target.copy_(value)
            self.arrived += 1

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, some of whose tensors are on the device or will be."""
        if func in (_aten._to_copy.default, _aten.copy_.default):
            return self._copy(func, args, dict(kwargs))
        # Without gradients such operations come whole, of which views, copies and products are parts.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self._mode:
                return func.decompose(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        mine = [x for x in leaves if isinstance(x, Far)]
        asked = kwargs.get("device")
        if asked is not None and not _is_device(asked):
            return func(*tree_map(_near, args), **tree_map(_near, kwargs))
        self._refuse_mixtures(func, leaves, bool(mine))
        if (cause := kinds.waits_for(func, args, kwargs)) is not None:
            self.arrive(self.arriving)
            self.wait(cause)
        near_args, near_kwargs = tree_map(_near, (args, dict(kwargs)))
        if asked is not None:
            near_kwargs["device"] = torch.device("cpu")
        before = self.given
        own = kinds.is_foreign(func)
        with self._inside() if own else nullcontext():
            out = func(*near_args, **near_kwargs)
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if self.dry and kinds.is_empty(func):
            for x in results:
                x.zero_()
        if kinds.launches(func) and any(x.numel() for x in results) and not (own and self.given > before):
            self.note(kinds.name_of(func))
        if self._recorded is not None and not self._quiet and not kinds.is_empty(func):
            self._recorded.append(_Done(lambda: self._again(func, near_args, near_kwargs), results))
        known = {id(x.near): x for x in mine}
        # torch makes views of tensors from outside of inference mode as if it was not on.
        outside = func.is_view and any(not x.is_inference() for x in mine)
        with torch.inference_mode(False) if outside else nullcontext():
            return tree_map(lambda x: self._far(x, known) if isinstance(x, Tensor) else x, out)

    def pinned(self, tensor: Tensor) -> Tensor:
        """Note that a tensor of the host is in memory that a device copies from and to by itself, and return it."""
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Return whether `pinned` noted the memory that a tensor is in."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is _aten._to_copy.default:
            (source,) = args
            target = None
            there = _is_device(kwargs.get("device") or source.device)
            waits = not kwargs.get("non_blocking", False)
        else:
            target, source = args[:2]
            there = isinstance(target, Far)
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        here = not isinstance(source, Far)
        near_args = tree_map(_near, args)
        if here and there:
            self._count_copy("to the device", source.numel())
            if waits:
                self.wait("copy to the device")
            elif not self.is_pinned(source):
                self.wait("copy from memory that is not pinned")
        elif there:
            self.note(kinds.name_of(func))
        elif not here:
            self._count_copy("to the host", source.numel())
            if waits or not (target is None or self.is_pinned(target)):
                self.arrive(self.arriving)
                self.wait("copy to the host")
                waits = True
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        out = func(*near_args, **kwargs)
        if self._recorded is not None and not self._quiet:
            self._recorded.append(_Done(lambda: func(*near_args, **kwargs), [out]))
        if there:
            return target if target is not None else Far(out, self)
        if not here and not waits:
            self._coming.append((out, out.clone()))
            self.arriving += 1
            self.pinned(out).fill_(kinds.poison(out.dtype))
        return target if target is not None else out

    def _far(self, near: Tensor, known: Mapping[int, Far]) -> Far:
        """Return the tensor of the device that a result is, which may be one that was there before."""
        found = known.get(id(near))
        return Far(near, self) if found is None else found

    def _count_copy(self, direction: str, numel: int) -> None:
        if numel and not self._quiet:
            self.given += 1
            for counted in self._counts:
                counted.copies[direction] += 1

    def _refuse_mixtures(self, func: Any, leaves: Sequence[Any], on_device: bool) -> None:
        """Raise RuntimeError where a tensor of the host meets one of the device, as devices do, but for single numbers."""
        for x in leaves if on_device else ():
            if isinstance(x, Tensor) and not isinstance(x, Far) and x.dim() and func not in kinds.TAKES_HOST_INDICES:
                raise RuntimeError(
                    f"{kinds.name_of(func)}: a tensor {tuple(x.shape)} on the host, others on the device"
                )

    def _again(self, func: Any, args: Any, kwargs: Any) -> Any:
        quiet, self._quiet = self._quiet, True
        try:
            return func(*args, **kwargs)
        finally:
            self._quiet = quiet

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Count what an operation of somebody else's does with its tensors, which are on the host here. None of it is recorded."""
        recorded, self._recorded = self._recorded, None
        try:
            with _Inside(self):
                yield
        finally:
            self._recorded = recorded


class _Seeing(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and torch would import its compiler to leave this alone.
        return False


class _Mode(_Seeing):
    """Sees operations that begin with tensors of the host, or with none."""

    def __init__(self, owner: SimulatedDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (_aten.pin_memory.default, _aten._pin_memory.default):
            return self._owner.pinned(args[0].clone())
        if func is _aten.is_pinned.default:
            return self._owner.is_pinned(args[0])
        pins = kwargs.pop("pin_memory", None)
        if any(isinstance(x, Far) or _is_device(x) for x in tree_leaves((args, kwargs))):
            return self._owner.compute(func, args, kwargs)
        out = func(*args, **kwargs)
        return self._owner.pinned(out) if pins else out


class _Inside(_Seeing):
    """Counts operations among the host's forms of a device's tensors."""

    def __init__(self, owner: SimulatedDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (cause := kinds.waits_for(func, args, kwargs or {})) is not None:
            self._owner.wait(cause)
        out = func(*args, **(kwargs or {}))
        if self._owner.dry and kinds.is_empty(func):
            out.zero_()
        if (
            kinds.launches(func)
            and not kinds.is_foreign(func)
            and any(isinstance(x, Tensor) and x.numel() for x in tree_leaves(out))
        ):
            self._owner.note(kinds.name_of(func))
        return out


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == DEVICE.type


def _near(value: Any) -> Any:
    """Return a tensor's form on the host; of a value that holds one as its `base`, a copy that holds this form."""
    if isinstance(value, Far):
        return value.near
    if isinstance(getattr(value, "base", None), Far):
        return replace(value, base=value.base.near)
    return value
