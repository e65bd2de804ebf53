"""Which devices there are, and which of them each setting leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard_xpu.cards import cards, visible

Build = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "ids", "tiles"),
    [
        ("max-1550", ["0bd5", "0bd5"], 2),
        ("max-1550-xe", ["0bd5"], 2),
        ("arc-a770", ["56a0"], 1),
        ("arc-b580-and-iris", ["e20b", "9a49"], 1),
        ("iris", ["9a49"], 1),
        ("none", [], 0),
    ],
)
def test_cards(machine: Build, name: str, ids: list[str], tiles: int) -> None:
    """Those on cards come first; a server's console is none."""
    found = cards(machine(name))
    assert [f"{card.device:04x}" for card in found] == ids
    assert all(card.tiles == tiles for card in found)
    assert [card.integrated for card in found] == [card.device == 0x9A49 for card in found]


def test_the_order_of_the_slots(machine: Build) -> None:
    found = cards(machine("arc-b580-and-iris"), by_slot=True)
    assert [card.slot for card in found] == ["0000:00:02.0", "0000:03:00.0"]


COMPOSITE = {"ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"}


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ({}, [128, 128, 129, 129]),  # a device for each tile
        (COMPOSITE, [128, 129]),
        ({"ZE_FLAT_DEVICE_HIERARCHY": "COMBINED"}, [128, 128, 129, 129]),
        ({"ZE_AFFINITY_MASK": ""}, [128, 128, 129, 129]),
        ({"ZE_AFFINITY_MASK": "1,2"}, [128, 129]),
        ({"ZE_AFFINITY_MASK": "3"}, [129]),
        ({"ZE_AFFINITY_MASK": "4"}, []),
        ({"ZE_AFFINITY_MASK": "1"} | COMPOSITE, [129]),
        ({"ZE_AFFINITY_MASK": "0.1,0.0"} | COMPOSITE, [128]),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:*"}, [128, 128, 129, 129]),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:0"}, [128]),
        ({"ONEAPI_DEVICE_SELECTOR": "Level_Zero:3,1"}, [128, 129]),
        ({"ONEAPI_DEVICE_SELECTOR": "*:gpu"}, [128, 128, 129, 129]),
        ({"ONEAPI_DEVICE_SELECTOR": "opencl:gpu;level_zero:2"}, [129]),
        ({"ONEAPI_DEVICE_SELECTOR": "!level_zero:0"}, [128, 129, 129]),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:*;!level_zero:0,1"}, [129, 129]),
        ({"ONEAPI_DEVICE_SELECTOR": "opencl:*"}, []),
        ({"ONEAPI_DEVICE_SELECTOR": "*:cpu"}, []),
        # The mask comes first, and what it leaves is numbered anew.
        ({"ZE_AFFINITY_MASK": "2,3", "ONEAPI_DEVICE_SELECTOR": "level_zero:0"}, [129]),
        ({"ZE_AFFINITY_MASK": "0", "ONEAPI_DEVICE_SELECTOR": "level_zero:1"}, []),
    ],
)
def test_settings(machine: Build, setting: dict[str, str], left: list[int]) -> None:
    found, emptied = visible(cards(machine("max-1550")), setting)
    assert [str(card.node) for card in found] == [f"dri/renderD{minor}" for minor in left]
    assert bool(emptied) is not bool(left)
    assert not emptied or emptied.partition("=")[0] in setting


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ({}, ["e20b"]),  # torch leaves integrated graphics out beside a card
        ({"ZE_AFFINITY_MASK": "1"}, ["9a49"]),
        ({"ONEAPI_DEVICE_SELECTOR": "!level_zero:0"}, ["9a49"]),
    ],
)
def test_integrated_graphics(machine: Build, setting: dict[str, str], left: list[str]) -> None:
    found, _ = visible(cards(machine("arc-b580-and-iris")), setting)
    assert [f"{card.device:04x}" for card in found] == left
