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
from pegboard.torch_build import torch_build
from pegboard.visible import has_card, hides_all

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE of the driver's interface."""
CAPABILITY = (75, 76)
"""The driver's attributes for both numbers of a compute capability."""
INTEL = 0x8086
"""PCI's number of the vendor of another kind of GPU that torch can be built for."""


def probe(root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL) -> Probe:
    """Ask the driver for its devices. Present means that the driver or the kernel shows one that is not hidden.

    The driver itself reads CUDA_VISIBLE_DEVICES: numbers, and ids of GPUs and of MIG instances.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and hides_all(visible):
        return Probe(False, False, f"hidden by CUDA_VISIBLE_DEVICES={visible!r}")
    nodes = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
    try:
        driver = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        if nodes:
            return Probe(True, False, f"/dev/{nodes[0]} is there but the driver's libcuda.so.1 cannot be loaded")
        return Probe(False, False, "no NVIDIA driver")
    status, count = driver.cuInit(0), ctypes.c_int(0)
    if status not in (0, NO_DEVICE):
        return Probe(bool(nodes), False, f"the NVIDIA driver does not start (cuInit gives {status})")
    if status == 0 and (status := driver.cuDeviceGetCount(ctypes.byref(count))) != 0:
        return Probe(True, False, f"the NVIDIA driver does not count its devices (cuDeviceGetCount gives {status})")
    if count.value == 0:
        return _without_device(root, nodes, visible)
    devices = "1 device" if count.value == 1 else f"{count.value} devices"
    return _with_torch(root, devices, driver)


def library(dist: str, install: str, generations: tuple[int, ...], load: Callable[[str], Any] = ctypes.CDLL) -> Probe:
    """Probe for a library of kernels, without importing it: its distribution is installed, and there is a GPU that it has code for.

    install: what installs it. generations: major numbers of the compute capability that it computes on.
    """
    try:
        version = metadata.version(dist)
    except metadata.PackageNotFoundError:
        return Probe(False, False, f"{dist} is not installed ({install})")
    there = capabilities(load)
    if not there:
        return Probe(False, False, f"{dist} {version} computes on NVIDIA GPUs, and none is here")
    if not any(major in generations for major, _ in there):
        wanted, here = " or ".join(f"{major}.x" for major in generations), ", ".join(f"{a}.{b}" for a, b in there)
        return Probe(False, False, f"{dist} {version} computes on GPUs of compute capability {wanted}, here is {here}")
    return Probe(True, True, f"{dist} {version}")


def capabilities(load: Callable[[str], Any] = ctypes.CDLL) -> list[tuple[int, int]]:
    """Return the compute capability of each visible GPU, as the driver tells it; empty where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and hides_all(visible):
        return []
    try:
        driver = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        parts = [ctypes.c_int(0), ctypes.c_int(0)]
        pairs = zip(parts, CAPABILITY, strict=True)
        # A device's handle is its number among those that are visible.
        if all(driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, index) == 0 for part, attribute in pairs):
            found.append((parts[0].value, parts[1].value))
    return found


def _without_device(root: Path, nodes: list[str], visible: str | None) -> Probe:
    if not nodes:
        return Probe(False, False, "the NVIDIA driver shows no device")
    if visible is None:
        why = "its permissions, or a GPU in MIG mode without an instance, may be the reason"
        return Probe(True, False, f"/dev/{nodes[0]} is there but the NVIDIA driver shows no device: {why}")
    known = ", ".join(_ids(root)) or f"{len(nodes)} by number"
    return Probe(True, False, f"CUDA_VISIBLE_DEVICES={visible!r} names none of the NVIDIA GPUs that are here ({known})")


def _with_torch(root: Path, devices: str, driver: Any) -> Probe:
    """Return the verdict by the build of the torch that is installed; where none is, importing it will say so."""
    build = torch_build()
    if not build:
        return Probe(True, True, devices)
    torch, toolkit = f"torch {build['__version__']}", build.get("cuda")
    if not toolkit:
        if (build.get("hip") and (root / "dev/kfd").exists()) or (build.get("xpu") and has_card(root, INTEL)):
            return Probe(False, False, f"{devices}, but {torch} is built for the other GPU that is here")
        return Probe(True, False, f"{devices}, but {torch} is built without CUDA: install a CUDA build of torch")
    newest = ctypes.c_int(0)
    # A driver runs whatever was built with a toolkit of its own major version, or an older one.
    if driver.cuDriverGetVersion(ctypes.byref(newest)) == 0 and newest.value // 1000 < int(toolkit.partition(".")[0]):
        limit = f"{newest.value // 1000}.{newest.value % 1000 // 10}"
        reason = f"the driver runs CUDA up to {limit} and {torch} is built with {toolkit}"
        return Probe(True, False, f"{devices}, but {reason}: update the driver, or install a torch for CUDA {limit}")
    return Probe(True, True, devices)


def _ids(root: Path) -> list[str]:
    """Return the GPUs' ids as the driver's files tell them."""
    lines = [
        line.partition(":")
        for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text(errors="replace").splitlines()
    ]
    return [value.strip() for key, _, value in lines if key.strip() == "GPU UUID"]
