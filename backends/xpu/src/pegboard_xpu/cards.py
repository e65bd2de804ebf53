"""Intel GPUs as the kernel shows them in /sys/class/drm, and which of them the environment leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

DRM = Path("sys/class/drm")
VENDOR = 0x8086
_DISPLAY = 0x03
"""PCI's base class of display controllers; 0x0380 is one without a screen, as in a data centre."""
_MAX = range(0x0BD0, 0x0BE6)
"""Device ids of the Max series, whose i915 driver lists tiles as gt0 and gt1; other chips have a media engine there."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, or one tile of it. slot: its PCI address. device: PCI's device id. node: its render node below /dev."""

    slot: str
    device: int
    tiles: int
    node: Path

    @property
    def integrated(self) -> bool:
        """Whether it is a part of the processor: those have always had this place on PCI's first bus."""
        return self.slot.endswith(":00:02.0")


def cards(root: Path, *, by_slot: bool = False) -> list[Card]:
    """Return the GPUs in the order in which Level Zero numbers them: those on cards first, unless `by_slot`."""
    found = []
    for folder in (root / DRM).glob("renderD*"):
        device = folder / "device"
        slot = _uevent(device / "uevent").get("PCI_SLOT_NAME", "")
        if _number(device / "vendor") != VENDOR or _number(device / "class") >> 16 != _DISPLAY or not slot:
            continue
        found.append(Card(slot, _number(device / "device"), _tiles(device), Path("dri", folder.name)))
    return sorted(found, key=lambda card: (card.integrated and not by_slot, card.slot))


def visible(found: list[Card], environment: Mapping[str, str]) -> tuple[list[Card], str]:
    """Return the devices that the environment leaves, as torch counts them, and the setting that leaves none; empty when some are left.

    Every tile is a device, unless ZE_FLAT_DEVICE_HIERARCHY is COMPOSITE. ZE_AFFINITY_MASK chooses first, by the numbers of devices (of
    cards and tiles, "0.1", in the composite hierarchy); ONEAPI_DEVICE_SELECTOR chooses of what is left. Integrated GPUs are left out
    by torch where there is one on a card.
    """
    flat = environment.get("ZE_FLAT_DEVICE_HIERARCHY", "FLAT").upper() != "COMPOSITE"
    devices = [replace(card, tiles=1) for card in found for _ in range(card.tiles)] if flat else list(found)
    for name, choose in (("ZE_AFFINITY_MASK", _masked), ("ONEAPI_DEVICE_SELECTOR", _selected)):
        value = environment.get(name)
        if value and devices:
            devices = choose(value, devices)
            if not devices:
                return [], f"{name}={value!r}"
    on_cards = [card for card in devices if not card.integrated]
    return on_cards or devices, ""


def _masked(mask: str, devices: list[Card]) -> list[Card]:
    wanted = {word.strip().partition(".")[0] for word in mask.split(",")}
    return [device for index, device in enumerate(devices) if str(index) in wanted]


def _selected(selector: str, devices: list[Card]) -> list[Card]:
    """Apply terms such as "level_zero:0,1", "*:gpu" and "!level_zero:1": what is named, less what is named after a "!"."""
    terms = [term.strip().lower() for term in selector.split(";") if term.strip()]
    named = [_named(term, len(devices)) for term in terms if not term.startswith("!")]
    taken = set().union(*named) if named else set(range(len(devices)))
    for term in terms:
        if term.startswith("!"):
            taken -= _named(term[1:], len(devices))
    return [device for index, device in enumerate(devices) if index in taken]


def _named(term: str, count: int) -> set[int]:
    backend, _, words = term.partition(":")
    if backend not in ("level_zero", "*"):
        return set()
    found: set[int] = set()
    for word in words.split(","):
        first = word.strip().partition(".")[0]
        found |= set(range(count)) if first in ("*", "gpu") else {int(first)} if first.isdecimal() else set()
    return found & set(range(count))


def _tiles(device: Path) -> int:
    """Count the tiles: the driver xe shows each as a folder, i915 as a second graphics unit of the card."""
    count = len(list(device.glob("tile[0-9]*")))
    if not count and _number(device / "device") in _MAX:
        count = len(list(device.glob("drm/card*/gt/gt[0-9]*")))
    return max(1, count)


def _uevent(file: Path) -> dict[str, str]:
    try:
        return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    except OSError:
        return {}


def _number(file: Path) -> int:
    try:
        return int(file.read_text().strip(), 0)
    except (OSError, ValueError):
        return 0
