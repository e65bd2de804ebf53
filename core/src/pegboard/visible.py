"""Devices as probes see them: lists of a variable, such as "0,2" or "GPU-1f2e,0", and cards of a vendor. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def has_card(root: Path, vendor: int) -> bool:
    """Return whether the kernel has a card that computes or draws, of a vendor by PCI's number. root: of the file system."""
    for file in (root / "sys/class/drm").glob("renderD*/device/vendor"):
        try:
            if int(file.read_text(), 16) == vendor:
                return True
        except (OSError, ValueError):
            continue  # gone, or refused to this process
    return False


def hides_all(value: str) -> bool:
    """Return whether a list is meant to leave no device: empty, a negative number, or a word such as a batch system's "none"."""
    first = value.split(",")[0].strip()
    return not first or first.startswith("-") or first.isalpha()


def chosen(value: str, ids: Sequence[str], *, repeats_end: bool = False) -> list[int]:
    """Return the indices of the devices that a list names, in its order; ids: of all devices.

    A word is an index, or the beginning of the id of one device alone. The first that is neither ends the list, as runtimes have it;
    so does one that names a device again where `repeats_end`, else it is passed by.
    """
    found: list[int] = []
    for word in value.split(","):
        index = _index(word.strip(), ids)
        if index is None or (repeats_end and index in found):
            break
        if index not in found:
            found.append(index)
    return found


def _index(word: str, ids: Sequence[str]) -> int | None:
    if word.isdecimal():
        return int(word) if int(word) < len(ids) else None
    named = [index for index, known in enumerate(ids) if known and known.lower().startswith(word.lower())]
    return named[0] if word and len(named) == 1 else None
