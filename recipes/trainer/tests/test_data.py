"""Which rows are trained on and which are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import ConfigError, DataError
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import Data, open_data

REGISTRY = Registry.of(
    {
        ("source", "jsonl"): PluginSpec(
            kind="source", target="pegboard_datasets.jsonl:JsonlSource", schema="pegboard_datasets.options:JsonlOptions"
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
    data = opened(path, tiny_tokenizer, {"use": f"{__name__}:Streamed"})
    assert rows_of(data.train, tiny_tokenizer) == list(range(6))
    assert data.train.examples.rows is None
    with pytest.raises(ConfigError, match="can only be read in order"):
        opened(path, tiny_tokenizer, {"use": f"{__name__}:Streamed", "validation": 0.5})


def test_a_bad_row_is_found_before_a_run_begins(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 5)
    path.write_text(path.read_text() + '{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 6: no field 'text' \(did you mean 'txt'\?\)"):
        opened(path, tiny_tokenizer)
