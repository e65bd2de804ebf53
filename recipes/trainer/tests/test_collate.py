from __future__ import annotations

import math

import pytest
import torch

from pegboard.types import Row
from pegboard_trainer.collate import IGNORE, collate, column


def test_targets_are_shifted_within_each_sequence() -> None:
    batch = collate([Row([5, 6, 7], [True, False, True]), Row([8, 9], [True, True], {"pair": 3})])
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.targets.tolist() == [IGNORE, 7, IGNORE, 9, IGNORE]
    assert batch.target_rows.tolist() == [1, 3]
    assert batch.seq_lens == [3, 2]
    assert batch.sequence_ids.tolist() == [0, 0, 0, 1, 1]
    assert batch.example_ids.tolist() == [0, 1]
    assert batch.parts == {}


def test_parts_of_examples_are_found_in_the_batch() -> None:
    def row(part: str, length: int) -> Row:
        return Row([length] * length, [True] * length, {"margin": 0.5, "text": part}, part)

    batch = collate([(row("chosen", 2), row("rejected", 3)), (row("chosen", 4), row("rejected", 2))])
    assert {part: found.tolist() for part, found in batch.parts.items()} == {"chosen": [0, 2], "rejected": [1, 3]}
    assert batch.example_ids.tolist() == [0, 0, 1, 1]
    assert batch.sequence_ids[batch.target_rows].tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert batch.extras["text"] == ["chosen", "rejected"] * 2
    assert batch.extras["margin"].dtype == torch.float32
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (*moved.parts.values(), moved.example_ids, moved.sequence_ids)} == {"meta"}
    assert moved.extras["margin"].is_meta


def test_numbers_of_tokens_are_shifted_as_targets_are() -> None:
    rows = [Row([5, 6, 7], [False, True, True], per_token={"logp": [0.0, -1.0, -2.0]}), Row([8, 9], [True, True])]
    batch = collate(rows)
    assert batch.extras["logp"].tolist() == [-1.0, -2.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="logp: 1 values for 2 tokens"):
        collate([Row([1, 2], [True, True], per_token={"logp": [0.0]})])


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, False], torch.bool),
        ([1, 2], torch.int64),
        ([1, 2.5], torch.float32),
        ([1.0, 2.0], torch.float32),
        ([True, 2], torch.float32),
    ],
)
def test_numbers_become_tensors(values: list[float], dtype: torch.dtype) -> None:
    found = column(values)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == dtype
    assert found.tolist() == values


def test_what_is_missing_and_what_is_no_number() -> None:
    found = column([None, 1])
    assert isinstance(found, torch.Tensor)
    assert math.isnan(found[0])
    assert found[1] == 1
    assert column(["a", None]) == ["a", None]
    assert column([None, None]) == [None, None]
    assert column([[1], [2]]) == [[1], [2]]
