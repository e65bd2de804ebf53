"""Tensors of which every process of a run has a part: each writes its own file, and any number of processes reads what it needs.

`STEM.safetensors` in a run of one process, `STEM-00002.safetensors` of the third process in a run of several. The header of such
a file says where its parts start in the whole, and which of its tensors are nobody else's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegboard.errors import ConfigError, ModelError
from pegboard.weights import read_metadata, read_safetensors, write_safetensors
from pegboard.weights.read import SafetensorsTensor
from pegboard_trainer.placement import Piece
from pegboard_trainer.world import World


def write_pieces(folder: Path, stem: str, held: Iterable[tuple[str, Tensor, Piece | None]], world: World) -> None:
    """Write the parts that this process has. A tensor without a Piece belongs to this process alone, whatever the others have."""
    tensors, places, private = [], {}, []
    for name, tensor, piece in held:
        if piece is None:
            private.append(name)
        elif not piece.own:
            continue
        else:
            places[name] = [list(piece.start), list(piece.whole), *([piece.rows] if piece.rows else [])]
        tensors.append((name, tensor))
    metadata = {"format": "pt"}
    if world.processes > 1:
        metadata |= {"pieces": json.dumps(places), "private": json.dumps(private), "processes": str(world.processes)}
    write_safetensors(_path(folder, stem, world), tensors, metadata)


def _path(folder: Path, stem: str, world: World) -> Path:
    return folder / (f"{stem}.safetensors" if world.processes == 1 else f"{stem}-{world.process:05d}.safetensors")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows first … first + count - 1 of a stored tensor, which lie at `start` in the whole. whole: whether these are all its rows."""

    tensor: SafetensorsTensor
    start: tuple[int, ...]
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.tensor.shape[1:]) if self.tensor.shape else ()


class Pieces:
    """What `write_pieces` wrote, by all processes of that run. shapes: of the whole tensors, by name."""

    def __init__(self, folder: Path, stem: str, world: World) -> None:
        self._parts: dict[str, list[_Part]] = {}
        self._private: dict[str, SafetensorsTensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._folder, self._foreign = folder, False
        paths = [p for p in sorted(folder.glob(f"{stem}*.safetensors")) if p.stem == stem or p.stem[len(stem)] == "-"]
        for path in paths:
            metadata = read_metadata(path)
            places: Mapping[str, list[Any]] = json.loads(metadata.get("pieces", "{}"))
            private = set(json.loads(metadata.get("private", "[]")))
            same = metadata.get("processes", "1") == str(world.processes)
            self._foreign = self._foreign or not same
            for name, tensor in read_safetensors(path).items():
                if name in private:
                    if same and path == _path(folder, stem, world):
                        self._private[name] = tensor
                    continue
                start, whole, *rows = places.get(name, [[0] * len(tensor.shape), list(tensor.shape)])
                first, count = 0, tensor.shape[0] if tensor.shape else 1
                for place, size in rows[0] if rows else ((start[0] if start else 0, count),):
                    self._parts.setdefault(name, []).append(
                        _Part(tensor, (place, *start[1:])[: len(start)], first, size)
                    )
                    first += size
                self.shapes[name] = tuple(whole)

    @property
    def names(self) -> list[str]:
        """Names of all tensors that can be loaded here."""
        return [*self.shapes, *(name for name in self._private if name not in self.shapes)]

    def load(self, name: str, piece: Piece, size: tuple[int, ...]) -> Tensor:
        """Return the part of `size` that starts where `piece` says. Raises ModelError where the files do not hold all of it."""
        shape, found = self.shapes[name], self._parts[name]
        if shape != piece.whole:
            raise ModelError(
                f"{self._folder}: {name} is {list(shape)}, {list(piece.whole)} is needed",
                fix="resume with the model of that run",
            )
        for part in found:
            if not piece.rows and part.start == piece.start and part.shape == part.tensor.shape == size:
                return part.tensor.load()
        out = torch.empty(size, dtype=found[0].tensor.dtype)
        first = filled = 0
        for place, count in piece.rows or ((piece.start[0] if size else 0, size[0] if size else 1),):
            target = out.narrow(0, first, count) if size else out
            first += count
            for part in found:
                filled += _copy_overlap(target, (place, *piece.start[1:])[: len(size)], part)
        if filled != out.numel():
            raise ModelError(f"{self._folder} lacks a part of {name}", fix="resume from another step")
        return out

    def own(self, name: str) -> Tensor:
        """Return a tensor that belongs to this process. Raises ConfigError in a run of another number of processes."""
        if name in self._private:
            return self._private[name].load()
        if self._foreign or name not in self._parts:
            raise ConfigError(
                f"{self._folder} was written by another number of processes, and {name} cannot be divided anew",
                fix="resume with as many processes",
            )
        return self._parts[name][0].tensor.load()

    @property
    def foreign(self) -> bool:
        """Whether another number of processes wrote this."""
        return self._foreign


def _copy_overlap(out: Tensor, start: tuple[int, ...], part: _Part) -> int:
    """Copy what a part and `out` (which starts at `start` in the whole) have in common; return how many values that are."""
    shape = part.shape
    if not shape:
        out.copy_(part.tensor.load())
        return 1
    low = [max(a, b) for a, b in zip(start, part.start, strict=True)]
    high = [min(a + n, b + m) for a, n, b, m in zip(start, out.shape, part.start, shape, strict=True)]
    if any(h <= lo for lo, h in zip(low, high, strict=True)):
        return 0
    before = part.first - part.start[0]
    rows = part.tensor.rows(before + low[0], before + high[0])
    source = rows[
        (slice(None), *(slice(lo - p, h - p) for lo, h, p in zip(low[1:], high[1:], part.start[1:], strict=True)))
    ]
    out[tuple(slice(lo - s, h - s) for lo, h, s in zip(low, high, start, strict=True))] = source
    return source.numel()
