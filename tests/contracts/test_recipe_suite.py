"""The suite of recipes fails where a recipe is not what it is said to be; recipes/*/tests pass it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pegboard.errors import PegboardError
from pegboard_sdk.conformance import RecipeSuite
from pegboard_sft.plugin import SPEC

Configs = Mapping[str, tuple[str | None, str | None]]


class Sound(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Configs] = {
        "default": (None, None),
        "demo": ("lora", None),
        "dora": ("dora", None),
        "full": (None, None),
        "lora": ("lora", None),
        "qlora": ("lora", "nf4"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [
        {"instruction": f"say {n}", "response": "hello " * (1 + n % 3)} for n in range(16)
    ]
    given = ("data.format=instruct", "data.validation=4")
    steps = 4


class Fewer(Sound):
    configs: ClassVar[Configs] = {"full": (None, None)}


class OtherAdapter(Sound):
    configs: ClassVar[Configs] = {**Sound.configs, "dora": ("lora", None)}


class Unread(Sound):
    given = ("data.format=labels", "data.validation=4")


class Rises(Sound):
    rises = True


class Missing(Sound):
    left = ("converted",)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return Sound.write(tmp_path)


def whole(suite: type[Sound], place: Path) -> Path:
    config, more = suite.learns
    return suite.run(place, config, "whole", *more, "steps=4", "checkpoint.every=2", "checkpoint.keep=null")


@pytest.mark.parametrize("suite", [Fewer, OtherAdapter])
def test_other_configs(suite: type[Sound], place: Path) -> None:
    Sound().test_configs_are_valid(place)
    with pytest.raises(AssertionError):
        suite().test_configs_are_valid(place)


@pytest.mark.parametrize(("suite", "error"), [(Unread, AssertionError), (Missing, PegboardError)])
def test_a_config_that_does_not_run(suite: type[Sound], error: type[Exception], place: Path) -> None:
    with pytest.raises(error):
        suite().test_config_runs(place, "full")


def test_a_metric_that_goes_the_other_way(place: Path) -> None:
    run = Sound.run(place, "lora", "longer", "optimizer.lr=0.02", "steps=12")
    Sound().test_learns(run)
    with pytest.raises(AssertionError):
        Rises().test_learns(run)


def test_a_run_that_resumes_otherwise(place: Path) -> None:
    run = whole(Sound, place)
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace('"loss": ', '"loss": 1'))
    with pytest.raises(AssertionError):
        Sound().test_a_resumed_run_is_the_run_that_went_on(place, run)
