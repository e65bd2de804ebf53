"""The library, and each instruction set that this machine can run."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from pegboard_cpu_kernels.library import ISAS, find

FOUND = find()


@pytest.fixture
def library() -> ctypes.CDLL:
    if FOUND.library is None:
        pytest.skip(FOUND.reason)
    return FOUND.library


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[str]:
    """Everything runs on this instruction set; skipped where the processor lacks it."""
    try:
        if ISAS[library.peg_set_isa(ISAS.index(request.param))] != request.param:
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
    finally:
        library.peg_set_isa(-1)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[int]:
    """So many threads of the library's own, whatever torch uses."""
    library.peg_set_threads(request.param, None)
    yield request.param
    library.peg_set_threads(1, None)
