from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import ConfigError
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.count import count_batches
from pegboard_trainer.inspect.opened import Opened
from pegboard_trainer.inspect.report import render
from pegboard_trainer.inspect.stats import collect, histogram, summary
from pegboard_trainer.packer import Batches


def opened(examples: Callable[..., Any], lengths: list[list[int]], *, streamed: bool = False, **batch: Any) -> Opened:
    config = TrainConfig.model_validate(
        {
            "output": "o",
            "model": "m",
            "data": "d",
            "optimizer": {"use": "adamw"},
            "batch": {"size": 2, "length": 10, **batch},
        }
    )
    return Opened(config, None, examples(lengths, streamed=streamed))  # type: ignore[arg-type]


def stats(found: Opened, rows: int | None = None) -> dict[str, Any]:
    return collect(found, rows, lambda: None)


def test_what_an_epoch_holds(examples: Callable[..., Any]) -> None:
    found = stats(opened(examples, [[5, 4], [12], [], [1], [-3], [10]]))
    assert (found["rows"], found["bad"], found["bad_rows"]) == (6, 1, ["row 4: a negative length"])
    assert (found["examples"], found["cut"], found["too_long"], found["left_out"]) == (4, 1, 1, 1)
    assert (found["tokens"], found["learned"]) == (29, 25)
    assert found["lengths"] == {"mean": 6.4, "min": 1, "p50": 5, "p90": 12, "p95": 12, "p99": 12, "max": 12}
    assert found["histogram"] == [(1, 1), *((n, 1 if n in (4, 5, 10) else 0) for n in range(2, 11)), (-1, 1)]
    assert (found["batches"], found["steps"]) == (2, 2)
    assert found["filled"] == pytest.approx(29 / 40)
    text = render(found)
    assert "6, 1 of them bad" in text
    assert "4 kept, 1 of them cut to length; 1 left out" in text
    assert text.endswith("bad rows\n  row 4: a negative length")


def test_too_long_rows_are_bad_where_they_are_errors(examples: Callable[..., Any]) -> None:
    found = stats(opened(examples, [[5], [12]], overlong="error"))
    assert found["bad_rows"] == ["row 1: 12 tokens, batch.length is 10"]
    dropped = stats(opened(examples, [[5], [12]], overlong="drop"))
    assert (dropped["bad"], dropped["left_out"], dropped["too_long"]) == (0, 1, 1)


def test_batches_and_steps_are_those_of_training(examples: Callable[..., Any]) -> None:
    lengths = [[n % 9 + 2] for n in range(100)]
    source = opened(examples, lengths, accumulate=4)
    counted = count_batches(Batches(examples(lengths, epochs=1), source.packer()))
    found = stats(source)
    assert (found["batches"], found["steps"]) == (counted, -(-counted // 4))
    assert stats(opened(examples, lengths), rows=30)["rows"] == 30


def test_data_without_a_known_end_needs_a_number_of_rows(examples: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        stats(opened(examples, [[5]] * 9, streamed=True))
    assert caught.value.fix == "give --rows N"
    assert stats(opened(examples, [[5]] * 9, streamed=True), rows=4)["examples"] == 4


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 40))
def test_numbers_of_any_lengths(lengths: list[int], limit: int) -> None:
    lengths.sort()
    assert sum(count for _, count in histogram(lengths, limit)) == len(lengths)
    found = summary(lengths)
    for percent in (50, 90, 99):
        value = found[f"p{percent}"]
        assert sum(n <= value for n in lengths) * 100 >= percent * len(lengths)
        assert sum(n < value for n in lengths) * 100 < percent * len(lengths)


def test_nothing_has_no_lengths() -> None:
    assert summary([]) == {}
