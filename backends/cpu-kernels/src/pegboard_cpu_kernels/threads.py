"""How many threads the kernels use: as many as torch does, whatever it is told later."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch

_NAME = re.compile(r"lib(gomp|iomp5|omp)\b.*\.(so|dylib)")


def follow_torch(library: ctypes.CDLL) -> bool:
    """Let the library ask torch's OpenMP at every call; return whether that was possible. Otherwise it keeps today's number."""
    threads = torch.get_num_threads()
    for path in _runtimes():
        try:
            count = ctypes.CDLL(str(path)).omp_get_max_threads
        except (OSError, AttributeError):
            continue
        # A process may hold more than one OpenMP: torch's is the one that says the same.
        if count() == threads:
            library.peg_set_threads(threads, ctypes.cast(count, ctypes.c_void_p))
            return True
    library.peg_set_threads(threads, None)
    return False


def _runtimes() -> list[Path]:
    """Return the OpenMP libraries that are loaded, torch's own folder first."""
    folder = Path(torch.__file__).parent / "lib"
    try:
        with open("/proc/self/maps") as lines:
            loaded = {Path(line.split()[-1]) for line in lines if "/" in line and _NAME.search(line)}
    except OSError:
        loaded = {path for path in folder.glob("lib*omp*") if _NAME.search(path.name)}
    return sorted(loaded, key=lambda path: (path.parent != folder, str(path)))
