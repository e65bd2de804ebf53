"""The demo's data and how its answers are counted; the tour itself runs in `make demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pegboard.errors import PluginError
from pegboard_sft.demo import tour
from pegboard_sft.demo.answers import Wish, count_right, is_right, read_wishes
from pegboard_sft.demo.make_data import ROOMS, WISHES, clock, write

FILES = ("train", "validation", "held_out")


def said(name: str) -> list[str]:
    lines = (tour.DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["instruction"] for line in lines]


def test_the_shipped_files_are_what_the_seed_gives(tmp_path: Path) -> None:
    for path in write(tmp_path):
        assert path.read_bytes() == (tour.DATA / path.name).read_bytes()


def test_nothing_that_is_held_out_is_trained() -> None:
    parts = {name: said(name) for name in FILES}
    assert [len(parts[name]) for name in FILES] == [600, 48, 64]
    everything = [text for part in parts.values() for text in part]
    assert len(set(everything)) == len(everything)


def test_the_wishes_that_are_shown_are_held_out() -> None:
    assert set(tour.SHOWN) <= set(said("held_out"))


def test_every_kind_of_wish_is_trained_and_no_held_back_phrasing_is() -> None:
    trained = set(said("train"))
    for wish in WISHES.values():
        filled = [
            {phrasing.format(room=room, value=value) for room in ROOMS for value in wish.values}
            for phrasing in wish.phrasings
        ]
        assert all(trained & texts for texts in filled[:-2])
        assert not trained & set.union(*filled[-2:])


@pytest.mark.parametrize(
    ("spoken", "time"),
    [("eight", "08:00"), ("half past six", "06:30"), ("quarter to seven", "06:45"), ("quarter past nine", "09:15")],
)
def test_times(spoken: str, time: str) -> None:
    assert clock(spoken) == time


def test_a_command_is_right_when_it_is_the_one_that_was_meant_and_nothing_else() -> None:
    wish = Wish("Dim the den.", {"room": "den", "lights": 10})
    assert is_right('{"lights": 10, "room": "den"}', wish)
    for wrong in (
        '{"room": "den", "lights": "10"}',
        '{"room": "den"}',
        'Sure! {"room": "den", "lights": 10}',
        "",
        "[" * 9999,
    ):
        assert not is_right(wrong, wish)
    assert count_right(['{"room": "den", "lights": 10}', "no"], [wish, wish]) == 1
    assert read_wishes(tour.DATA / "held_out.jsonl")[0].meant["room"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tour.free_folder(tmp_path / "demo") == tmp_path / "demo"
    assert capsys.readouterr().out == ""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").symlink_to("nowhere")
    assert tour.free_folder(tmp_path / "demo") == tmp_path / "demo-3"
    assert "exists, so this run goes to" in capsys.readouterr().out


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour, "NEEDED", ("sft", "nothere", "noreither"))
    with pytest.raises(PluginError, match="needs pegboard-nothere, pegboard-noreither") as caught:
        tour.check_installed()
    assert caught.value.fix == "pip install pegboard-nothere pegboard-noreither"
