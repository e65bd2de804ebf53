"""Whether there is an Intel GPU that torch can use, found without importing torch."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pegboard.plugins.spec import Probe
from pegboard.torch_build import torch_build
from pegboard.visible import hides_all
from pegboard_xpu.cards import Card, cards, visible

LOADER = "libze_loader.so.1"
_GROUPS = "give this user the group render (in a container: --group-add)"


def probe(
    root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL, access: Callable[[Path, int], bool] = os.access
) -> Probe:
    """Look at the kernel's files, and start Level Zero, Intel's driver interface, where a card is given to this process.

    access: as `os.access`.
    """
    there = cards(root, by_slot=os.environ.get("ZE_ENABLE_PCI_ID_DEVICE_ORDER") == "1")
    if not there:
        return Probe(False, False, "no Intel GPU")
    given = [card for card in there if (root / "dev" / card.node).exists()]
    if not given:
        reason = f"{_told(there)}, but no /dev/{there[0].node} (in a container: --device /dev/dri)"
        return Probe(False, False, reason)
    usable = [card for card in given if access(root / "dev" / card.node, os.R_OK | os.W_OK)]
    if not usable:
        return Probe(True, False, f"{_told(given)}, but /dev/{given[0].node} may not be opened: {_GROUPS}")
    left, setting = visible(usable, os.environ)
    if setting:
        # A selector of other backends is how one asks for the processor.
        variable, _, value = setting.partition("=")
        hidden = hides_all(value.strip("'")) if variable == "ZE_AFFINITY_MASK" else "level_zero" not in value
        reason = f"hidden by {setting}" if hidden else f"{_told(usable)}, none of which {setting} names"
        return Probe(not hidden, False, reason)
    return _with_torch(root, left) or _with_driver(left, load)


def _with_torch(root: Path, left: list[Card]) -> Probe | None:
    """Return the verdict where torch is built for something else."""
    build = torch_build()
    if not build or build.get("xpu"):
        return None  # where torch is not installed, importing it will say so
    torch, told = f"torch {build['__version__']}", _told(left)
    devices = root / "dev"
    other = (build.get("cuda") and any(devices.glob("nvidia[0-9]*"))) or (
        build.get("hip") and (devices / "kfd").exists()
    )
    if other:
        return Probe(False, False, f"{told}, but {torch} is built for the other GPU that is here")
    return Probe(True, False, f"{told}, but {torch} is built without XPU support: install an XPU build of torch")


def _with_driver(left: list[Card], load: Callable[[str], Any]) -> Probe:
    try:
        status = load(LOADER).zeInit(0)
    except OSError:
        return Probe(
            True, False, f"{_told(left)}, but {LOADER} cannot be loaded: install Intel's compute runtime and Level Zero"
        )
    if status != 0:
        code = status & 0xFFFFFFFF
        return Probe(
            True,
            False,
            f"{_told(left)}, but Level Zero does not start (zeInit gives {code:#x}): install Intel's compute runtime",
        )
    return Probe(True, True, _told(left))


def _told(found: list[Card]) -> str:
    """Return "2 devices (2 x 0bd5)", with PCI's device ids, the only names that the kernel has."""
    kinds = Counter(f"{card.device:04x}{', integrated' if card.integrated else ''}" for card in found)
    count = "1 device" if len(found) == 1 else f"{len(found)} devices"
    return f"{count} ({'; '.join(f'{number} x {kind}' if number > 1 else kind for kind, number in kinds.items())})"
