from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.reward import Answered
from pegboard.plugins.load import Registry
from pegboard_rollouts.config import RewardSection
from pegboard_rollouts.rewards import Rewards

MODULE = """
class Longer:
    def __init__(self, than=0):
        self.than = than

    def __call__(self, answers):
        return [float(len(a.text) > self.than) for a in answers]


def letters(answers, letter="a"):
    return [a.text.count(letter) for a in answers]


def too_few(answers):
    return [1.0]


def nothing(answers):
    return [float("inf") for a in answers]
"""
ANSWERS = [Answered("", "banana"), Answered("", "no")]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"judges_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def rewards(*sections: object) -> Rewards:
    made: Sequence[RewardSection] = [RewardSection.model_validate(section) for section in sections]
    return Rewards(made, Registry.of({}))


def test_weighted_sums_of_functions_and_classes(module: str) -> None:
    made = rewards(
        {"use": f"{module}:letters", "weight": 0.5}, {"use": f"{module}:Longer", "than": 3}, f"{module}:letters"
    )
    totals, parts = made(ANSWERS)
    assert parts == {"letters": [3.0, 0.0], "Longer": [1.0, 0.0], "letters'": [3.0, 0.0]}
    assert totals == [5.5, 0.0]


def test_options_of_a_function(module: str) -> None:
    assert rewards({"use": f"{module}:letters", "letter": "o"})(ANSWERS)[0] == [0.0, 1.0]
    with pytest.raises(ConfigError, match="colour"):
        rewards({"use": f"{module}:letters", "colour": "o"})


@pytest.mark.parametrize(("name", "message"), [("too_few", "1 numbers for 2"), ("nothing", "gave inf")])
def test_what_is_no_reward_is_told(module: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rewards(f"{module}:{name}")(ANSWERS)
