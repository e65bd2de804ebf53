"""Whether there is an NVIDIA GPU that torch can use, found without importing torch."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pegboard.plugins.spec import Probe

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE of the driver's interface."""


def probe(root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL) -> Probe:
    """Ask the driver for its devices. Present means that the driver or the kernel shows one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return Probe(False, False, f"hidden by CUDA_VISIBLE_DEVICES={visible!r}")
    nodes = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
    try:
        driver = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        if nodes:
            return Probe(True, False, f"/dev/{nodes[0]} is there but the driver's libcuda.so.1 cannot be loaded")
        return Probe(False, False, "no NVIDIA driver")
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        return Probe(False, False, "the NVIDIA driver shows no device")
    if status != 0:
        return Probe(bool(nodes), False, f"the NVIDIA driver does not start (cuInit gives {status})")
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return Probe(True, False, f"the NVIDIA driver does not count its devices (cuDeviceGetCount gives {status})")
    if count.value == 0:
        return Probe(False, False, "the NVIDIA driver shows no device")
    devices = "1 device" if count.value == 1 else f"{count.value} devices"
    build = _torch_build()
    if build is not None:
        return Probe(True, False, f"{devices}, but torch {build} is built without CUDA: install a CUDA build of torch")
    return Probe(True, True, devices)


def _torch_build() -> str | None:
    """Return torch's version when its name says that it is a build for something else."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None  # importing it will say so
    local = version.partition("+")[2]
    return version if local.startswith(("cpu", "rocm", "xpu")) else None
