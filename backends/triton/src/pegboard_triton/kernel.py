"""Kernels that are made ready before they are first launched: compiled or read from Triton's cache, several at a time.

A first launch compiles, has the host's compiler make a launcher, and loads what came of it: tenths of a second for each of the dozen
kernels of a first prompt, one after another. A rehearsal does what is going to be done, on values that do not matter; what it would launch
is noted in place of that, and made ready by a few threads, all of which leave the interpreter to others for most of the time.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from threading import Event, Lock, Thread
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

log = logging.getLogger("pegboard.triton")

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on tensors of the host: settled when they are made, at import."""

MOST_THREADS = 6
SWITCH = 2e-4
"""Seconds after which a thread that compiles gives the interpreter to one that waits for it: whoever reads weights meanwhile asks for it
back after every operation of torch.
"""
_DIVISIBLE = 16
"""What Triton compiles apart: integers and addresses that this divides."""


class Kernel(JITFunction):
    """A function of Triton that is launched. pending: what makes it ready, by the way of launching it that is waited for."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(function, **options)
        self.pending: dict[Hashable, Future[None]] = {}

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        """Launch, or be noted where somebody rehearses."""
        rehearsal = _HERE.get()
        if rehearsal is not None:
            rehearsal.note(self, args, kwargs)
            return None
        if self.pending and (future := self.pending.pop(way_of(args, kwargs), None)) is not None:
            # What failed there is told by the launch, which tries again.
            wait([future])
        return super().run(*args, grid=grid, warmup=warmup, **kwargs)

    def make_ready(self, device: torch.device, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Do all that a first launch with such arguments does before the device begins."""
        with on(device):
            compiled = super().run(*args, grid=None, warmup=True, **kwargs)
            # Reading this makes the launcher, and loads the code.
            _ = compiled is not None and compiled.run


class InterpretedKernel(InterpretedFunction):
    """The same in Triton's interpreter, which has nothing to make ready."""

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        """Compute, or be noted where somebody rehearses."""
        rehearsal = _HERE.get()
        if rehearsal is not None:
            return rehearsal.note(self, args, kwargs)
        return super().run(*args, grid=grid, warmup=warmup, **kwargs)


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorate a function of Triton that is launched, as `triton.jit` does; what others call inside of it needs no more than that."""
    if function is None:
        return lambda function: kernel(function, **options)
    return InterpretedKernel(function) if INTERPRETED else Kernel(function, **options)


class Rehearsal:
    """One look at what is going to be launched on a device. noted: kernels with ways of launching them, each once, in order."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.noted: dict[tuple[Any, Hashable], None] = {}
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="kernels")
        self._watched = Event()

    def begin(self, work: Callable[[], None]) -> Rehearsal:
        """Do `work` in a thread of its own; return at once."""
        Thread(target=self._attend, args=(work,), name="rehearsal", daemon=True).start()
        return self

    def run(self, work: Callable[[], None]) -> None:
        """Do `work` in this thread. What it raises ends it: what was not noted by then is made ready by its first launch."""
        before = _HERE.set(self)
        try:
            with on(self.device):
                work()
        except Exception as error:
            log.debug("kernels are not all made ready ahead: %s: %s", type(error).__name__, error)
        finally:
            _HERE.reset(before)

    def _attend(self, work: Callable[[], None]) -> None:
        with _TURNS:
            # In a thread that ends: the handles of libraries that it was given are then free for the next one that asks.
            noting = Thread(target=self.run, args=(work,), name="rehearsal.noting", daemon=True)
            noting.start()
            noting.join()
            self._watched.set()
            self._pool.shutdown()
        # What no launch took meanwhile is ready: nobody need look for it any more.
        for kernel, way in self.noted:
            if isinstance(kernel, Kernel):
                kernel.pending.pop(way, None)

    def note(self, kernel: Kernel | InterpretedKernel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Have a kernel made ready for such arguments."""
        way = way_of(args, kwargs)
        if (kernel, way) in self.noted:
            return
        self.noted[kernel, way] = None
        if isinstance(kernel, Kernel):
            # Made here, since of two threads that make it one would lose what it compiles.
            _ = kernel.device_caches[self.device.index or 0]
            future = self._pool.submit(kernel.make_ready, self.device, args, dict(kwargs))
            kernel.pending[way] = future
            _UNDER_WAY.append(future)

    def watched(self) -> None:
        """Wait until it is known what is going to be launched."""
        self._watched.wait()

    def close(self) -> None:
        """Give up what has not been begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Turns:
    """Makes threads take turns more often for as long as any rehearsal goes on."""

    def __init__(self) -> None:
        self._lock, self._count, self._before = Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._count:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH))
            self._count += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                sys.setswitchinterval(self._before)


_TURNS = _Turns()
_HERE: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)
_UNDER_WAY: list[Future[None]] = []


def settle() -> None:
    """Wait until no kernel is being made ready: loading code is nothing that may happen while work is captured."""
    while _UNDER_WAY:
        wait([_UNDER_WAY[-1]])
        _UNDER_WAY.pop()


def rehearsing() -> bool:
    """Return whether what would be launched here is noted instead."""
    return _HERE.get() is not None


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the current one: Triton launches there, whatever its arguments lie on."""
    if device.type == "cpu":
        return nullcontext()
    entered: AbstractContextManager[Any] = torch.get_device_module(device.type).device(device)
    return entered


def way_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Return what of a launch kernels are compiled for: types, constants, and which integers are 1 or divided by 16."""
    return *map(_kind, args), *((name, _exact(value)) for name, value in sorted(kwargs.items()))


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.dtype
    if isinstance(value, int) and not isinstance(value, bool):
        return "int", value == 1, value % _DIVISIBLE == 0, value.bit_length() > 31
    return "float" if isinstance(value, float) else _exact(value)


def _exact(value: Any) -> Hashable:
    return value if isinstance(value, Hashable) else repr(value)
