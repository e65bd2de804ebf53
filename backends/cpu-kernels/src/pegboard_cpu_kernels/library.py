"""The compiled library: where it is, whether it may be used, what it runs on. Standard library alone."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegboard.plugins.spec import Probe

SWITCH = "PEGBOARD_CPU_KERNELS"
"""Environment variable: 0 turns the kernels off, and torch computes instead."""

ABI = 4
"""Number of the C interface that this package calls; `peg_abi` returns the library's."""

ISAS = ("portable", "avx2", "avx512", "avx512bf16")
"""Instruction sets by their number in C, poorest first."""

_FOLDER = Path(__file__).parent
_FILE = _FOLDER / ("libpegboard_cpu_kernels" + (".dylib" if sys.platform == "darwin" else ".so"))


@dataclass(frozen=True, slots=True)
class Found:
    """library: None where there is none to use. reason: why, or what it computes with."""

    library: ctypes.CDLL | None
    reason: str


def find() -> Found:
    """Return the library, loaded once a process. The switch is read at every call."""
    if os.environ.get(SWITCH) == "0":
        return Found(None, f"the environment sets {SWITCH}=0")
    return _load()


def probe() -> Probe:
    """Probe of plugins that need the library."""
    found = find()
    return Probe(found.library is not None, found.library is not None, found.reason)


@functools.cache
def _load() -> Found:
    if not _FILE.is_file():
        return Found(None, _why())
    try:
        library = ctypes.CDLL(str(_FILE))
        abi = library.peg_abi()
    except (OSError, AttributeError) as error:
        return Found(None, f"the library cannot be loaded: {error}; install pegboard-cpu-kernels again")
    if abi != ABI:
        return Found(
            None, f"the library's interface is {abi}, this package's {ABI}; install pegboard-cpu-kernels again"
        )
    return Found(library, f"{ISAS[library.peg_isa()]} instructions")


def _why() -> str:
    try:
        record: Any = json.loads((_FOLDER / "build.json").read_text(encoding="utf-8"))
        return f"{record['error']}; install a C compiler, then pegboard-cpu-kernels again"
    except (OSError, ValueError, KeyError, TypeError):
        return f"there is no {_FILE.name}; install pegboard-cpu-kernels again where a C compiler is"
