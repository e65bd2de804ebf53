"""Examples to tensors: sequences are laid end to end."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pegboard.types import Batch, Example, Row

IGNORE = -100


def collate(examples: Iterable[Row | Example]) -> Batch:
    """Lay the sequences of examples end to end as a Batch: positions restart, targets are shifted by one, and no target crosses a
    boundary. A Row stands for an example of one sequence.
    """
    groups = [(example,) if isinstance(example, Row) else example for example in examples]
    rows = [row for group in groups for row in group]
    lens = [len(row.input_ids) for row in rows]
    if lens != [len(row.mask) for row in rows]:
        raise ValueError("a sequence has a mask of another length")
    # With buffers and tensors, not lists: the device waits for the next batch.
    numbers, learned = array("q"), bytearray()
    for row in rows:
        numbers.fromlist(row.input_ids)
        learned += bytes(row.mask)
    ids = torch.frombuffer(numbers, dtype=torch.int64) if numbers else _ids([])
    mask = torch.frombuffer(learned, dtype=torch.bool) if learned else torch.zeros(0, dtype=torch.bool)
    sizes = _ids(lens)
    ends = sizes.cumsum(0)
    targets = torch.where(mask, ids, IGNORE).roll(-1)
    targets[ends[sizes > 0] - 1] = IGNORE
    return Batch(
        ids,
        torch.arange(len(ids)) - (ends - sizes).repeat_interleave(sizes),
        targets,
        lens,
        torch.masked_select(torch.arange(len(ids)), targets != IGNORE),
        {**_by_sequence(rows), **_by_token(rows)},
        _parts(rows),
        example_ids=_ids([number for number, group in enumerate(groups) for _ in group]),
    )


def _ids(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _parts(rows: Sequence[Row]) -> dict[str, Tensor]:
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row.part:
            found.setdefault(row.part, []).append(number)
    return {part: _ids(numbers) for part, numbers in found.items()}


def _by_sequence(rows: Sequence[Row]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row.extras)
    return {name: column([row.extras.get(name) for row in rows]) for name in names}


def _by_token(rows: Sequence[Row]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for row in rows for name in row.per_token)
    found = {}
    for name in names:
        values: list[float] = []
        for row in rows:
            given = row.per_token.get(name, [0.0] * len(row.input_ids))
            if len(given) != len(row.input_ids):
                raise ValueError(f"{name}: {len(given)} values for {len(row.input_ids)} tokens")
            values += [*given[1:], 0.0]
        found[name] = torch.tensor(values, dtype=torch.float32)
    return found


def column(values: list[Any]) -> Tensor | list[Any]:
    """Return numbers as a tensor [N] of bool, int64 or float32 (a missing one is NaN), anything else as it is."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds or not kinds <= {bool, int, float}:
        return values
    if None in values or len(kinds) > 1 or kinds == {float}:
        return torch.tensor([float("nan") if value is None else float(value) for value in values], dtype=torch.float32)
    return torch.tensor(values, dtype=torch.bool if kinds == {bool} else torch.int64)
