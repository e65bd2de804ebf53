"""Work that is recorded once and run again on the same memory: a graph, as devices have them, for the host.

While work is recorded it runs as usual; every call of the library is noted with its arguments, and every operation of torch that
computes something as itself. A replay makes runs of library calls one call, which gives Python's lock away.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pegboard_cpu_kernels.arena import Arena

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MAKES_ROOM = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})

recorder: Recorder | None = None
"""Who records now, if anybody: one thread at a time, which the library's callers look at."""


class CannotRecord(Exception):
    """The work does something whose result a replay could not have, such as reading a value on the host."""


class Recorder(TorchDispatchMode):
    """Notes what happens. library: the compiled one. arena: where the work's own tensors lie."""

    def __init__(self, library: ctypes.CDLL, arena: Arena) -> None:
        super().__init__()
        # Besides the arena: inputs, weights, results of torch's operations.
        self.kept: list[Any] = [arena]
        self._arena = arena
        self._steps: list[tuple[int, bytes] | Callable[[], object]] = []
        self._library = library
        self._add = address_of(library.peg_packed_add)
        self._gather = address_of(library.peg_packed_gather)

    def note(self, function: Any, block: bytes, *kept: Any) -> None:
        """Note a call that was made: a peg_packed function of the library, its arguments, and whose memory they point to."""
        self._steps.append((address_of(function), block))
        self._keep(*kept)

    def program(self) -> Program:
        """Return what was noted."""
        return Program(self._library, self._steps, self.kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique"):
            raise CannotRecord(f"{func} brings a value to the host, or a shape that depends on values")
        if (own := self._own(name, args, kwargs)) is not None:
            return own
        out = func(*args, **kwargs)
        if name in _MAKES_ROOM:
            if out.device.type == "cpu" and out.is_contiguous():
                return self._arena.empty(out.shape, out.dtype)
            self.kept.append(out)
            return out
        self.kept.append(out)
        aliases = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
        written = any(alias.is_write for alias in aliases)
        if aliases and not written and _storages(out) <= _storages((args, kwargs)):
            return out  # a view: the memory is noted where it was made
        self.kept.append((args, kwargs))
        if written or not func._schema.returns:
            self._steps.append(lambda: func(*args, **kwargs))
        elif any(isinstance(value, Tensor) for value in (out if isinstance(out, (list, tuple)) else (out,))):
            self._steps.append(_again(func, args, kwargs, out))
        return out

    def _keep(self, *values: Any) -> None:
        """Keep what the program reads or writes alive; what lies in the arena is free again when nobody holds it any more."""
        self.kept += [value for value in values if not (isinstance(value, Tensor) and self._arena.owns(value))]

    def _own(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Compute the few operations between the library's calls in it too, so that those become one run."""
        if kwargs:
            return None
        if name == "add" and len(args) == 2 and all(isinstance(arg, Tensor) for arg in args):
            x, y = args
            if x.shape != y.shape or x.dtype not in _TYPES or y.dtype is not x.dtype:
                return None
            if not (x.is_contiguous() and y.is_contiguous()):
                return None
            out = self._arena.empty(x.shape, x.dtype)
            summed = (_TYPES[x.dtype], x.data_ptr(), y.data_ptr(), x.numel(), out.data_ptr())
            self._keep(x, y)
            return self._run(self._library.peg_packed_add, self._add, summed, out)
        if name == "embedding" and len(args) == 2:
            weight, ids = args
            if not (weight.is_contiguous() and ids.is_contiguous() and ids.dtype is torch.int64):
                return None
            out = self._arena.empty((*ids.shape, weight.shape[1]), weight.dtype)
            row = weight.shape[1] * weight.element_size()
            block = (weight.data_ptr(), len(weight), row, ids.data_ptr(), ids.numel(), out.data_ptr())
            self._keep(weight, ids)
            return self._run(self._library.peg_packed_gather, self._gather, block, out)
        return None

    def _run(self, function: Any, address: int, block: tuple[int, ...], out: Tensor) -> Tensor:
        packed = bytes((ctypes.c_int64 * len(block))(*block))
        if function(packed):
            raise IndexError("an id is not in the table")
        self._steps.append((address, packed))
        return out


# torch wraps the method so that its compiler leaves it alone, and imports the compiler for that: seconds at the first step.
Recorder.__torch_dispatch__ = getattr(  # type: ignore[method-assign]
    Recorder.__torch_dispatch__, "__wrapped__", Recorder.__torch_dispatch__
)


class Program:
    """Recorded work. `replay` runs it once more; inputs and outputs are the tensors that it was recorded with."""

    def __init__(
        self, library: ctypes.CDLL, steps: list[tuple[int, bytes] | Callable[[], object]], kept: list[Any]
    ) -> None:
        self._kept = kept
        self._segments: list[Callable[[], object]] = []
        run: list[tuple[int, bytes]] = []
        for step in steps:
            if isinstance(step, tuple):
                run.append(step)
                continue
            self._close(library, run)
            self._segments.append(step)
            run = []
        self._close(library, run)
        self.calls = sum(isinstance(step, tuple) for step in steps)
        self.operations = len(steps) - self.calls

    def replay(self) -> None:
        """Run the work once more."""
        for segment in self._segments:
            segment()

    def _close(self, library: ctypes.CDLL, run: list[tuple[int, bytes]]) -> None:
        if not run:
            return
        blocks = ctypes.create_string_buffer(b"".join(block for _, block in run))
        self._kept.append(blocks)
        start, entries = ctypes.addressof(blocks), (ctypes.c_int64 * (2 * len(run)))()
        for index, (function, block) in enumerate(run):
            entries[2 * index], entries[2 * index + 1] = function, start
            start += len(block)
        at, execute = ctypes.c_int64(), library.peg_program_run
        count, where = ctypes.c_int64(len(run)), ctypes.byref(at)

        def replay() -> None:
            code = execute(entries, count, where)
            if code == -1:
                raise IndexError("an id is not in the table")
            if code:
                raise RuntimeError(f"call {at.value} of a recorded program failed with {code}")

        self._segments.append(replay)


def record(library: ctypes.CDLL, work: Callable[[], None], arena: Arena | None = None) -> Program:
    """Run `work` and return it as a program. Raises CannotRecord, and what `work` raises.

    arena: shared with programs that are never run at the same time as this one.
    """
    global recorder
    if recorder is not None:
        raise CannotRecord("something is being recorded already")
    made = Recorder(library, arena or Arena())
    recorder = made
    try:
        with made:
            work()
    finally:
        recorder = None
    return made.program()


def address_of(function: Any) -> int:
    """Return the address of a function of the library."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _storages(value: Any) -> set[int]:
    """Return the addresses of the memory that tensors in nested values lie in. `to` and `reshape` may copy or not: this tells."""
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr()}
    if isinstance(value, Mapping):
        return _storages(list(value.values()))
    return {address for part in value for address in _storages(part)} if isinstance(value, (list, tuple)) else set()


def _again(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Callable[[], object]:
    outs = [out] if isinstance(out, Tensor) else [part for part in out if isinstance(part, Tensor)]

    def run() -> None:
        new = func(*args, **kwargs)
        for old, value in zip(outs, [new] if isinstance(new, Tensor) else new, strict=True):
            old.copy_(value)

    return run
