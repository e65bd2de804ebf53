"""Block sizes and warps by card, read from data: nothing is tuned while a program runs.

`tuned/OP.json` maps a card's name to entries {"when": {size name: largest value}, "use": {constant or option: value}}, tried in order; the
first whose sizes all hold is used. "default" stands for cards that are not listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import torch


@cache
def _entries(op: str) -> Mapping[str, list[dict[str, Any]]]:
    found: Mapping[str, list[dict[str, Any]]] = json.loads((files(__package__) / "tuned" / f"{op}.json").read_text())
    return found


@cache
def card(device: torch.device) -> str:
    """Return the name of the card as its driver tells it; "default" for the host, where kernels are interpreted."""
    if device.type == "cpu":
        return "default"
    name: str = torch.get_device_module(device.type).get_device_name(device)
    return name


@cache
def _choice(op: str, name: str, sizes: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    entries = _entries(op)
    known = dict(sizes)
    for entry in entries.get(name, entries["default"]):
        if all(known[size] <= most for size, most in entry.get("when", {}).items()):
            use: Mapping[str, int] = entry["use"]
            return use
    raise KeyError(f"tuned/{op}.json has no entry for {known} on {name}: its last one must hold for all sizes")


def choice(op: str, device: torch.device, **sizes: int) -> Mapping[str, int]:
    """Return the constants and options with which `op` is launched for such sizes on this device."""
    return _choice(op, card(device), tuple(sizes.items()))
