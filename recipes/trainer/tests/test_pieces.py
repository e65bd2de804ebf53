"""Tensors written in parts, and read in others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pegboard.errors import ConfigError, ModelError
from pegboard_trainer.pieces import Pieces, write_pieces
from pegboard_trainer.placement import Piece
from pegboard_trainer.world import World

WHOLE = torch.arange(7 * 4, dtype=torch.float32).view(7, 4)


def part(rows: slice, columns: slice) -> tuple[Tensor, Piece]:
    return WHOLE[rows, columns].contiguous(), Piece((rows.start, columns.start), (7, 4), own=True)


def write(folder: Path) -> None:
    """Two columns by two uneven shares of the rows, by four processes; each has a tensor of its own."""
    boxes = [
        (slice(0, 4), slice(0, 2)),
        (slice(4, 7), slice(0, 2)),
        (slice(0, 4), slice(2, 4)),
        (slice(4, 7), slice(2, 4)),
    ]
    for process, box in enumerate(boxes):
        tensor, piece = part(*box)
        held = [("w", tensor, piece), ("mine", torch.tensor([float(process)]), None)]
        everywhere = ("step", torch.tensor(3.0), Piece((), (), own=process == 0))
        write_pieces(folder, "state", [*held, everywhere], World(process=process, processes=4))


@pytest.mark.parametrize(
    "box",
    [(slice(0, 7), slice(0, 4)), (slice(2, 6), slice(1, 3)), (slice(4, 7), slice(2, 4)), (slice(7, 7), slice(0, 4))],
)
def test_any_part_is_read_by_any_number_of_processes(tmp_path: Path, box: tuple[slice, slice]) -> None:
    write(tmp_path)
    found = Pieces(tmp_path, "state", World())
    assert found.shapes == {"w": (7, 4), "step": ()}
    expected, piece = part(*box)
    assert found.load("w", piece, tuple(expected.shape)).equal(expected)
    assert found.load("step", Piece((), (), own=True), ()) == 3
    assert found.foreign
    with pytest.raises(ConfigError, match="another number of processes"):
        found.own("mine")


def test_each_process_finds_what_is_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    for process in range(4):
        found = Pieces(tmp_path, "state", World(process=process, processes=4))
        assert found.own("mine").tolist() == [process]
        assert not found.foreign


def test_parts_that_are_missing_are_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "state-00002.safetensors").unlink()
    whole, piece = part(slice(0, 7), slice(0, 4))
    with pytest.raises(ModelError, match="lacks a part of w"):
        Pieces(tmp_path, "state", World()).load("w", piece, tuple(whole.shape))
    with pytest.raises(ModelError, match="is needed"):
        Pieces(tmp_path, "state", World()).load("w", Piece((0, 0), (9, 4), own=True), (9, 4))


def test_one_process_writes_one_plain_file(tmp_path: Path) -> None:
    tensor, piece = part(slice(0, 7), slice(0, 4))
    write_pieces(tmp_path, "state", [("w", tensor, piece), ("mine", torch.ones(2), None)], World())
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    found = Pieces(tmp_path, "state", World())
    assert found.load("w", piece, (7, 4)).equal(WHOLE)
    assert found.own("mine").equal(torch.ones(2))
