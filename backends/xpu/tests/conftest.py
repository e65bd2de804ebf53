"""Machines with Intel GPUs, as the files that their kernel drivers show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Pci = tuple[str, int, int, str, int]
"""Slot, device id, class, driver, tiles."""
MAX_1550: Pci = ("0000:18:00.0", 0x0BD5, 0x038000, "i915", 2)
ARC_A770: Pci = ("0000:03:00.0", 0x56A0, 0x030000, "i915", 1)
ARC_B580: Pci = ("0000:03:00.0", 0xE20B, 0x030000, "xe", 1)
IRIS: Pci = ("0000:00:02.0", 0x9A49, 0x030000, "i915", 1)
SERVER: Pci = ("0000:02:00.0", 0x0536, 0x030000, "mgag200", 1)
MACHINES: dict[str, list[Pci]] = {
    "max-1550": [MAX_1550, ("0000:9a:00.0", *MAX_1550[1:])],
    "max-1550-xe": [(*MAX_1550[:3], "xe", 2)],
    "arc-a770": [ARC_A770],
    "arc-b580-and-iris": [IRIS, ARC_B580],
    "iris": [IRIS],
    "none": [],
}
VARIABLES = "ZE_AFFINITY_MASK ONEAPI_DEVICE_SELECTOR ZE_FLAT_DEVICE_HIERARCHY ZE_ENABLE_PCI_ID_DEVICE_ORDER".split()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_built: Callable[..., None]) -> Callable[..., Path]:
    """Return a function that makes a root with a machine's files. without: render nodes that are not there."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch_built("2.12.0", xpu="20260000")

    def build(name: str, *, without: tuple[str, ...] = ()) -> Path:
        root = tmp_path / name
        (root / "sys/class/drm").mkdir(parents=True)
        # Every server has a console, which is no GPU for us.
        for number, (slot, device, group, driver, tiles) in enumerate([*MACHINES[name], SERVER]):
            vendor = 0x102B if driver == "mgag200" else 0x8086
            card, node = root / f"sys/class/drm/card{number}/device", root / f"sys/class/drm/renderD{128 + number}"
            files = {"vendor": f"0x{vendor:04x}", "device": f"0x{device:04x}", "class": f"0x{group:06x}"}
            files["uevent"] = (
                f"DRIVER={driver}\nPCI_CLASS={group:X}\nPCI_ID={vendor:04X}:{device:04X}\nPCI_SLOT_NAME={slot}"
            )
            card.mkdir(parents=True)
            for file, text in files.items():
                (card / file).write_text(text + "\n")
            # i915 shows a graphics unit for each tile, and one for media beside a newer chip's; xe a folder for each tile.
            units = (
                [f"tile{i}/gt{i}" for i in range(tiles)]
                if driver == "xe"
                else [f"drm/card{number}/gt/gt{i}" for i in range(2)]
            )
            for unit in units:
                (card / unit).mkdir(parents=True)
            node.mkdir()
            (node / "device").symlink_to(card)
            if node.name not in without and driver != "mgag200":
                (root / "dev/dri").mkdir(parents=True, exist_ok=True)
                (root / "dev/dri" / node.name).touch()
        return root

    return build
