"""Launches of Triton's interpreter, told to a simulated device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from triton.runtime.interpreter import GridExecutor

from pegboard_sdk.simulated import SimulatedDevice


@contextmanager
def kernels_on(device: SimulatedDevice) -> Iterator[None]:
    """Count every launch of a kernel by its function's name; its arguments may be tensors of the device."""
    run = GridExecutor.__call__

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        device.launch(executor.fn.__name__, partial(run, executor), args, kwargs)

    with mock.patch.object(GridExecutor, "__call__", launch):
        yield
