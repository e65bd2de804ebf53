"""Whether there is an AMD GPU that torch can use, found without importing torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pegboard.plugins.spec import Probe
from pegboard.torch_build import torch_build
from pegboard.visible import has_card, hides_all
from pegboard_rocm.topology import Gpu, gpus, visible

INTEL = 0x8086
"""PCI's number of the vendor of another kind of GPU that torch can be built for."""
Access = Callable[[Path, int], bool]
"""As `os.access`: whether a file may be opened."""
_GROUPS = "give this user the groups render and video (in a container: --group-add)"


def probe(root: Path = Path("/"), access: Access = os.access) -> Probe:
    """Look at the kernel driver's files. Present means that a card is there, was given to this process, and is not hidden."""
    there = gpus(root)
    if not there:
        return Probe(False, False, "no AMD GPU that the kernel driver amdkfd knows")
    device = root / "dev/kfd"
    if not device.exists():
        reason = f"{_told(there)}, but no /dev/kfd (in a container: --device /dev/kfd --device /dev/dri)"
        return Probe(False, False, reason)
    if not access(device, os.R_OK | os.W_OK):
        return Probe(True, False, f"{_told(there)}, but /dev/kfd may not be opened: {_GROUPS}")
    # The runtime passes by cards whose render node it cannot open.
    nodes = [root / "dev" / gpu.node for gpu in there]
    open_to_us = [access(node, os.R_OK | os.W_OK) for node in nodes]
    given = [gpu for gpu, opens in zip(there, open_to_us, strict=True) if opens]
    if not given:
        why = (
            f"may not be opened: {_GROUPS}" if nodes[0].exists() else "is not there (in a container: --device /dev/dri)"
        )
        return Probe(True, False, f"{_told(there)}, but /dev/{there[0].node} {why}")
    left, setting = visible(given, os.environ)
    if setting:
        hidden = hides_all(setting.partition("=")[2].strip("'\""))
        reason = f"hidden by {setting}" if hidden else f"{_told(given)}, none of which {setting} names"
        return Probe(not hidden, False, reason)
    return _with_torch(root, left)


def _with_torch(root: Path, left: list[Gpu]) -> Probe:
    told, build = _told(left), torch_build()
    if not build or build.get("hip"):
        return Probe(True, True, told)  # where torch is not installed, importing it will say so
    torch = f"torch {build['__version__']}"
    nvidia = build.get("cuda") and any((root / "dev").glob("nvidia[0-9]*"))
    if nvidia or (build.get("xpu") and has_card(root, INTEL)):
        return Probe(False, False, f"{told}, but {torch} is built for the other GPU that is here")
    return Probe(True, False, f"{told}, but {torch} is built without HIP: install a ROCm build of torch")


def _told(found: list[Gpu]) -> str:
    """Return "3 devices (gfx942, 192 GiB; 2 x gfx1100, 24 GiB)"."""
    count = "1 device" if len(found) == 1 else f"{len(found)} devices"
    targets = Counter(f"{gpu.target}, {gpu.memory / 2**30:.0f} GiB" for gpu in found)
    return f"{count} ({'; '.join(f'{number} x {t}' if number > 1 else t for t, number in targets.items())})"
