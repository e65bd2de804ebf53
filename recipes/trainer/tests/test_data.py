"""Which rows are trained on and which are held out."""

from __future__ import annotations

import json
import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pegboard.errors import ConfigError, DataError
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard_datasets.jsonl import JsonlSource
from pegboard_datasets.options import JsonlOptions
from pegboard_trainer import data as data_module
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import Data, open_data

REGISTRY = Registry.of(
    {
        ("source", "jsonl"): PluginSpec(
            kind="source", target="pegboard_datasets.jsonl:JsonlSource", schema="pegboard_datasets.options:JsonlOptions"
        ),
        ("transform", "labels"): PluginSpec(
            kind="transform", target="pegboard_datasets.labels:Labels", schema="pegboard_datasets.options:LabelsOptions"
        ),
        ("transform", "text"): PluginSpec(
            kind="transform",
            target="pegboard_datasets.plain:PlainText",
            schema="pegboard_datasets.options:PlainOptions",
        ),
    }
)


class Streamed:
    """Rows that can be read in order only."""

    def __init__(self, path: str) -> None:
        self._rows = [json.loads(line) for line in Path(path).read_text().splitlines()]

    def rows(self, start: int = 0) -> Any:
        return enumerate(self._rows[start:], start)

    def describe(self, index: int) -> str:
        return f"row {index}"


def write_rows(path: Path, count: int, first: int = 0) -> Path:
    path.write_text("".join(json.dumps({"text": f"row {first + number:03d}"}) + "\n" for number in range(count)))
    return path


def opened(path: Path, tokenizer: Any, data: dict[str, Any] | None = None, **changes: Any) -> Data:
    section = {"path": str(path), "format": "text", **(data or {})}
    batch = {"size": 2, "length": 16, "pack": False}
    config = {"output": "o", "model": "m", "optimizer": {"use": "adamw"}, "batch": batch, "data": section, **changes}
    return open_data(TrainConfig.model_validate(config), REGISTRY, tokenizer)


def rows_of(batches: Any, tokenizer: Any) -> list[int]:
    return [
        int(tokenizer.decode(ids.tolist())[-3:])
        for _, batch in batches
        for ids in batch.input_ids.split(batch.seq_lens)
    ]


def test_a_share_or_a_number_of_rows_is_held_out(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 20)
    for wanted, count in ((0.25, 5), (3, 3), ("3", 3)):
        data = opened(path, tiny_tokenizer, {"validation": wanted})
        assert data.held_out is not None
        held, trained = rows_of(data.held_out(), tiny_tokenizer), rows_of(data.train, tiny_tokenizer)
        assert len(held) == count
        assert sorted([*held, *trained]) == list(range(20))
        assert rows_of(data.held_out(), tiny_tokenizer) == held == sorted(held)
        assert trained != sorted(trained)


def test_another_file_is_held_out(tmp_path: Path, tiny_tokenizer: Any) -> None:
    other = write_rows(tmp_path / "other.jsonl", 4, first=100)
    data = opened(write_rows(tmp_path / "rows.jsonl", 6), tiny_tokenizer, {"validation": str(other)})
    assert data.held_out is not None
    assert rows_of(data.held_out(), tiny_tokenizer) == [100, 101, 102, 103]
    assert sorted(rows_of(data.train, tiny_tokenizer)) == list(range(6))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 3),
        ({"epochs": 2}, 5),
        ({"epochs": 0.8}, 2),
        ({"epochs": 0.3}, 1),
        ({"steps": 7}, 7),
        ({"batch": {"size": 2, "length": 16, "pack": False, "accumulate": 2}}, 2),
    ],
)
def test_how_many_steps_a_run_has(tmp_path: Path, tiny_tokenizer: Any, changes: dict[str, Any], steps: int) -> None:
    assert opened(write_rows(tmp_path / "rows.jsonl", 5), tiny_tokenizer, **changes).total_steps == steps


def test_a_source_that_is_read_in_order_is_neither_shuffled_nor_split(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 6)
    data = opened(path, tiny_tokenizer, {"use": f"{__name__}:Streamed"}, steps=9)
    assert rows_of(islice(data.train, 4), tiny_tokenizer) == [0, 1, 2, 3, 4, 5, 0, 1]
    assert data.train.examples.rows is None
    with pytest.raises(ConfigError, match="how many steps an epoch has is not known"):
        opened(path, tiny_tokenizer, {"use": f"{__name__}:Streamed"})
    with pytest.raises(ConfigError, match="can only be read in order"):
        opened(path, tiny_tokenizer, {"use": f"{__name__}:Streamed", "validation": 0.5})


def test_a_bad_row_is_found_before_a_run_begins(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 5)
    path.write_text(path.read_text() + '{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 6: no field 'text' \(did you mean 'txt'\?\)"):
        opened(path, tiny_tokenizer)


def test_ranks_share_the_steps(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 10)
    batch = {"size": 2, "length": 16, "pack": False, "accumulate": 2}
    section = {"path": str(path), "format": "text"}
    config = TrainConfig.model_validate(
        {"output": "o", "model": "m", "optimizer": {"use": "adamw"}, "batch": batch, "data": section}
    )
    assert open_data(config, REGISTRY, tiny_tokenizer).total_steps == 3
    assert open_data(config, REGISTRY, tiny_tokenizer, ranks=2).total_steps == 2


def test_many_rows_are_not_all_read_to_count_the_steps(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 400)
    monkeypatch.setattr(data_module, "COUNTED", 300)
    monkeypatch.setattr(data_module, "SAMPLE", 50)
    reads = []
    monkeypatch.setattr(Counted, "reads", reads)
    with caplog.at_level(logging.INFO, "pegboard.train"):
        data = opened(path, tiny_tokenizer, {"use": f"{__name__}:Counted"}, epochs=2)
    assert data.total_steps == 400
    assert len(reads) < 100
    assert "data: 400 rows, about 400 steps by a sample" in caplog.text
    # The order and the end of an epoch are those of a run that counted: only the last step may fall elsewhere.
    first = rows_of(islice(data.train, 200), tiny_tokenizer)
    assert sorted(first) == list(range(400))
    exact = opened(path, tiny_tokenizer, {"use": f"{__name__}:Counted", "count": "exact"}, epochs=2)
    assert exact.total_steps == 400
    assert rows_of(islice(exact.train, 200), tiny_tokenizer) == first


class Counted(JsonlSource):
    """Notes which rows are read."""

    schema = JsonlOptions
    reads: ClassVar[list[int]] = []

    def row(self, index: int) -> Any:
        self.reads.append(index)
        return super().row(index)


def mixed(path: Path, tokenizer: Any, *mix: Any, data: Any = None, **changes: Any) -> Data:
    return opened(path, tokenizer, {"path": None, "mix": list(mix), **(data or {})}, **changes)


def test_sources_are_one_or_mixed_by_weight(tmp_path: Path, tiny_tokenizer: Any) -> None:
    a, b = write_rows(tmp_path / "a.jsonl", 6), write_rows(tmp_path / "b.jsonl", 3, first=100)
    joined = mixed(tmp_path, tiny_tokenizer, str(a), {"path": str(b)})
    rows = rows_of(joined.train, tiny_tokenizer)
    assert sorted(rows) == [0, 1, 2, 3, 4, 5, 100, 101, 102]
    assert rows != sorted(rows)
    weights = {"path": str(a), "weight": 1}, {"path": str(b), "weight": 2}
    data = mixed(tmp_path, tiny_tokenizer, *weights, epochs=1)
    rows = rows_of(data.train, tiny_tokenizer)
    assert [row >= 100 for row in rows] == [True, False, True] * 3
    assert sorted(row for row in rows if row >= 100) == [100, 100, 101, 101, 102, 102]
    place = data.train.examples.describe((0, 0, 0))
    assert place == f"{b}, line {rows[0] - 99}"


def test_each_source_of_a_mix_has_its_own_format_and_holds_out_its_share(tmp_path: Path, tiny_tokenizer: Any) -> None:
    a, b = write_rows(tmp_path / "a.jsonl", 8), tmp_path / "b.jsonl"
    b.write_text("".join(json.dumps({"body": f"row {n:03d}"}) + "\n" for n in range(100, 104)))
    other = {"path": str(b), "format": {"use": "text", "field": "body"}}
    data = mixed(tmp_path, tiny_tokenizer, str(a), other, data={"validation": 0.25})
    assert data.held_out is not None
    held, trained = rows_of(data.held_out(), tiny_tokenizer), rows_of(data.train, tiny_tokenizer)
    assert [sum(row >= 100 for row in held), len(held)] == [1, 3]
    assert sorted([*held, *trained]) == [*range(8), *range(100, 104)]
    with pytest.raises(ConfigError, match="rows of several sources"):
        mixed(tmp_path, tiny_tokenizer, str(a), other, data={"validation": 3})
    with pytest.raises(ConfigError, match=r"only some sources of .* have a weight"):
        mixed(tmp_path, tiny_tokenizer, {"path": str(a), "weight": 1}, other)
    labels = {"path": str(a), "format": "labels"}
    with pytest.raises(
        ConfigError, match=r"data\.mix has the formats Labels, PlainText, one of which looks at neighbours"
    ):
        mixed(tmp_path, tiny_tokenizer, labels, str(a))


@pytest.mark.parametrize("section", [{"path": None}, {"path": "a.jsonl", "mix": ["b.jsonl"]}])
def test_data_are_a_path_or_a_mix(tmp_path: Path, tiny_tokenizer: Any, section: Any) -> None:
    with pytest.raises(ValueError, match="give either `path`, or `mix`"):
        opened(tmp_path, tiny_tokenizer, section)


def test_a_mix_may_hold_a_source_without_end(tmp_path: Path, tiny_tokenizer: Any) -> None:
    a, b = write_rows(tmp_path / "a.jsonl", 3), write_rows(tmp_path / "b.jsonl", 2, first=100)
    stream = {"use": f"{__name__}:Streamed", "path": str(b)}
    with pytest.raises(ConfigError, match="can only be read in order: how many rows it has is not known"):
        mixed(tmp_path, tiny_tokenizer, str(a), stream, steps=9)
    weights = {"path": str(a), "weight": 1}, {**stream, "weight": 1}

    def fresh() -> Data:
        return mixed(tmp_path, tiny_tokenizer, *weights, data={"shuffle": False}, steps=9)

    data = fresh()
    assert rows_of(islice(data.train, 4), tiny_tokenizer) == [0, 100, 1, 101, 2, 100, 0, 101]
    # A position beyond the first pass over the stream is found again.
    again = fresh()
    again.train.restore(json.loads(json.dumps(data.train.state())))
    assert rows_of(islice(again.train, 2), tiny_tokenizer) == [1, 100, 2, 101]


def test_token_ids_are_kept_by_content(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write_rows(tmp_path / "rows.jsonl", 12), tmp_path / "cache"
    section = {"use": f"{__name__}:Counted", "cache": str(cache)}
    first = rows_of(opened(path, tiny_tokenizer, section).train, tiny_tokenizer)
    reads: list[int] = []
    monkeypatch.setattr(Counted, "reads", reads)
    moved = path.rename(tmp_path / "moved.jsonl")
    assert rows_of(opened(moved, tiny_tokenizer, section).train, tiny_tokenizer) == first
    assert reads == []
    assert len(os.listdir(cache)) == 1
    opened(moved, tiny_tokenizer, {**section, "format": {"use": "text", "end": False}})
    opened(write_rows(moved, 13), tiny_tokenizer, section)
    assert len(os.listdir(cache)) == 3
    assert sorted(set(reads)) == list(range(13))
