"""The data of a run: training batches, and held-out ones if the configuration asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard_trainer.config import BatchSection, TrainConfig
from pegboard_trainer.examples import Counts, Examples, Limits, split_rows
from pegboard_trainer.packer import Batches, Packer, count_batches

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry


@dataclass(frozen=True, slots=True)
class Data:
    """train: batches to train on. held_out: makes one fresh pass over the validation data; None without it."""

    train: Batches
    total_steps: int
    held_out: Callable[[], Batches] | None


def open_data(config: TrainConfig, registry: Registry, tokenizer: Tokenizer) -> Data:
    """Open source, transform and split. Without `steps`, the data is read and tokenized once more to count the steps."""
    section = config.data
    source: Source = registry.create("source", section.source())
    transform = registry.create("transform", section.format)
    limits = Limits(config.batch.length, config.batch.overlong, config.batch.size)
    indices = _all(source)
    validation: tuple[Source, Tensor | None] | None = None
    held_out = _number(section.validation)
    if isinstance(held_out, float):
        if not isinstance(source, IndexedSource):
            raise ConfigError(
                "data.validation is a share, but this source can only be read in order", fix="give a path instead"
            )
        indices, held = split_rows(len(source), held_out, config.seed)
        validation = source, held
    elif held_out is not None:
        other = registry.create("source", section.source(held_out))
        validation = other, _all(other)

    def training(epochs: float | None) -> Batches:
        examples = Examples(
            source, transform, tokenizer, limits, config.seed, section.shuffle, indices, epochs=epochs, counts=Counts()
        )
        return Batches(examples, _packer(config.batch))

    def held_out_batches(source: Source, indices: Tensor | None) -> Batches:
        examples = Examples(source, transform, tokenizer, limits, 0, False, indices, epochs=1, counts=Counts())
        return Batches(examples, _packer(config.batch))

    epochs = None if config.steps is not None else config.epochs or 1
    steps = config.steps or math.ceil(count_batches(training(epochs)) / config.batch.accumulate)
    fresh = None if validation is None else (lambda: held_out_batches(*validation))
    # A row that cannot be used is told before the run folder is made, as far as the first batches show it.
    for batches in ([training(epochs)] if config.steps is not None else []) + ([fresh()] if fresh is not None else []):
        next(iter(batches), None)
    return Data(training(epochs), steps, fresh)


def _packer(batch: BatchSection) -> Packer:
    if batch.pack:
        return Packer(batch.size * batch.length, window=batch.window)
    return Packer(batch.size * batch.length, limit=batch.size, window=1)


def _all(source: Source) -> Tensor | None:
    return torch.arange(len(source)) if isinstance(source, IndexedSource) else None


def _number(value: float | str | None) -> float | str | None:
    """Return a share or number of rows as a float, also where it was written as text; anything else is a path."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return value
