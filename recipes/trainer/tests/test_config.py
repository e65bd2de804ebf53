from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pegboard_trainer.config import TrainConfig

SMALL: dict[str, Any] = {"output": "o", "model": "m", "data": "d.jsonl", "optimizer": {"use": "adamw", "lr": 0.1}}


def test_bare_strings_are_paths_and_names() -> None:
    config = TrainConfig.model_validate({**SMALL, "schedule": "cosine", "adapter": "lora", "loggers": ["jsonl"]})
    assert (config.model.path, config.data.path, config.data.use) == ("m", "d.jsonl", "jsonl")
    assert (config.schedule, config.adapter, config.loggers) == ({"use": "cosine"}, {"use": "lora"}, [{"use": "jsonl"}])
    assert config.data.format == {"use": "chat"}


def test_keys_of_the_data_that_are_not_the_loops_are_the_sources() -> None:
    config = TrainConfig.model_validate(
        {**SMALL, "data": {"path": "b.txt", "use": "text", "split": "line", "shuffle": False}}
    )
    assert config.data.source() == {"use": "text", "path": "b.txt", "split": "line"}
    assert config.data.source("other.txt") == {"use": "text", "path": "other.txt", "split": "line"}


def test_a_resumed_run_may_move_and_grow_but_not_change() -> None:
    config = TrainConfig.model_validate(SMALL)
    moved = {
        "model": "elsewhere/m",
        "data": "elsewhere/d.jsonl",
        "output": "p",
        "steps": 9,
        "resume": "auto",
        "name": "again",
    }
    assert TrainConfig.model_validate({**SMALL, **moved}).identity() == config.identity()
    for change in ({"seed": 1}, {"clip": None}, {"batch": {"size": 5}}, {"schedule": "linear"}, {"adapter": "lora"}):
        assert TrainConfig.model_validate({**SMALL, **change}).identity() != config.identity()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"optimiser": {}}, "optimiser"),
        ({"batch": {"size": 0}}, "batch.size"),
        ({"batch": {"overlong": "cut"}}, "batch.overlong"),
        ({"clip": 0}, "clip"),
        ({"steps": 0}, "steps"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep"),
        ({"model": {"path": "m", "type": "x"}}, "model.type"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate({**SMALL, **change})
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [where]
