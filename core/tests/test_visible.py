from __future__ import annotations

from pathlib import Path

import pytest

from pegboard.visible import chosen, has_card, hides_all

IDS = ["GPU-1f00aa", "GPU-1f00bb", "GPU-2c", ""]


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("GPU-2c,0", [2, 0]),
        ("gpu-1F00B", [1]),
        ("GPU-1f", []),  # of two devices
        ("GPU-9", []),
        ("0,4,1", [0]),  # the list ends where there is no such device
        ("0,-1,1", [0]),
        ("0,,1", [0]),
        ("", []),
        ("1,1,0", [1, 0]),
        ("1,GPU-1f00bb,0", [1, 0]),
    ],
)
def test_lists(value: str, indices: list[int]) -> None:
    assert chosen(value, IDS) == indices


def test_a_device_named_again_may_end_the_list() -> None:
    assert chosen("1,1,0", IDS, repeats_end=True) == [1]


@pytest.mark.parametrize("value", ["", " ", "-1", "-1,0", "none", "NoDevFiles"])
def test_what_is_meant_to_hide(value: str) -> None:
    assert hides_all(value)


@pytest.mark.parametrize("value", ["0", "7", "GPU-1f", "MIG-4a", "0,-1"])
def test_what_is_meant_to_choose(value: str) -> None:
    assert not hides_all(value)


def test_cards_by_vendor(tmp_path: Path) -> None:
    for node, text in (("renderD128", "0x10de"), ("renderD129", "odd"), ("renderD130", "0x8086\n")):
        file = tmp_path / "sys/class/drm" / node / "device/vendor"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert has_card(tmp_path, 0x8086) and has_card(tmp_path, 0x10DE)
    assert not has_card(tmp_path, 0x1002) and not has_card(tmp_path / "none", 0x8086)
