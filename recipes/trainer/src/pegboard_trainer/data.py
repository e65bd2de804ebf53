"""The data of a run: training batches, and held-out ones if the configuration asks for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pegboard.errors import ConfigError
from pegboard.interfaces.source import IndexedSource, Source
from pegboard.interfaces.transform import Transform
from pegboard_trainer.cache import TokenCache, cache_path
from pegboard_trainer.config import BatchSection, TrainConfig
from pegboard_trainer.count import count_batches, estimate_batches
from pegboard_trainer.examples import Examples, Limits
from pegboard_trainer.feed import Feed, Part, make_feed
from pegboard_trainer.order import split_rows
from pegboard_trainer.packer import Batches, Packer

if TYPE_CHECKING:
    from pegboard.config import Choice
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry

log = logging.getLogger("pegboard.train")

COUNTED = 5000
"""Rows that are read and tokenized to count the steps of a run; of more, a sample is."""

SAMPLE = 2000
"""Rows of that sample: the number of batches is then right to about one in a hundred."""


@dataclass(frozen=True, slots=True)
class Data:
    """train: batches to train on. total_steps: of the run. held_out: makes one fresh pass over the validation data; None without it."""

    train: Batches
    total_steps: int
    held_out: Callable[[], Batches] | None


def open_data(
    config: TrainConfig, registry: Registry, tokenizer: Tokenizer, *, ranks: int = 1, writes: bool = True
) -> Data:
    """Open sources and transforms and split them.

    A number of epochs becomes a number of steps before the run begins, since schedules need it. Few rows are counted exactly. Of many,
    a sample is packed: the run then ends about one in a hundred before or after the end of the last epoch.

    ranks: processes that see different data; each step takes `batch.accumulate` batches of every one. writes: whether this process
    fills the cache.
    """
    opener = Opener(config, registry, tokenizer, writes)
    parts = opener.parts()
    section = config.data
    held_out = _number(section.validation)
    held: list[Part] | None = None
    if isinstance(held_out, float):
        parts, held = _split(parts, held_out, config.seed)
    elif held_out is not None:
        held = [opener.part(section.source(held_out), section.format)]
    feed = make_feed(parts, config.seed, shuffle=section.shuffle)

    def held_out_batches(parts: Sequence[Part]) -> Batches:
        fresh = make_feed([replace(part, weight=None) for part in parts], 0, shuffle=False)
        return opener.batches(fresh, 1)

    fresh = None if held is None else (lambda: held_out_batches(held))
    steps, epochs = _length(opener, feed, config.batch.accumulate * ranks)
    # A row that cannot be used is told before the run folder is made, as far as the first batches show it.
    for batches in ([opener.batches(feed, None)] if epochs is None else []) + ([fresh()] if fresh is not None else []):
        next(iter(batches), None)
    return Data(opener.batches(feed, epochs), steps, fresh)


@dataclass(frozen=True, slots=True)
class Opener:
    """Makes parts and examples as the configuration says."""

    config: TrainConfig
    registry: Registry
    tokenizer: Tokenizer
    writes: bool

    def parts(self) -> list[Part]:
        """Return the sources of the training data."""
        section = self.config.data
        if not section.mix:
            return [self.part(section.source(), section.format)]
        parts = [self.part(one.choice, one.format or section.format, one.weight) for one in section.mix]
        kinds = {type(part.transform) for part in parts}
        if len(kinds) > 1 and any(kind.complete is not Transform.complete for kind in kinds):
            raise ConfigError(
                f"data.mix has the formats {', '.join(sorted(kind.__name__ for kind in kinds))}, one of which looks at neighbours",
                fix="give all sources the same format",
            )
        return parts

    def part(self, choice: Choice, form: Choice, weight: float | None = None) -> Part:
        """Return one source with its transform."""
        source: Source = self.registry.create("source", choice)
        indices = torch.arange(len(source)) if isinstance(source, IndexedSource) else None
        return Part(source, self.registry.create("transform", form), indices, weight, self._cache(source, form))

    def examples(self, feed: Feed, epochs: float | None) -> Examples:
        """Return a fresh pass over rows."""
        batch = self.config.batch
        return Examples(feed, self.tokenizer, Limits(batch.length, batch.overlong, batch.size), epochs)

    def batches(self, feed: Feed, epochs: float | None) -> Batches:
        """Return the same, packed."""
        return Batches(self.examples(feed, epochs), packer_of(self.config.batch))

    def _cache(self, source: Source, form: Choice) -> TokenCache | None:
        folder = self.config.data.cache
        path = None if folder is None else cache_path(folder, source, form, self.tokenizer)
        return None if path is None else TokenCache(path, writes=self.writes)


def _length(opener: Opener, feed: Feed, group: int) -> tuple[int, float | None]:
    """Return the steps of a run, each of `group` batches, and the epochs after which its data end: None where steps end the run."""
    config = opener.config
    if config.steps is not None:
        return config.steps, None
    epochs = config.epochs or 1.0
    if feed.rows is None:
        raise ConfigError(
            "the data can only be read in order: how many steps an epoch has is not known before its end",
            fix="set steps",
        )
    if config.data.count == "exact" or feed.rows * epochs <= COUNTED:
        return math.ceil(count_batches(opener.batches(feed, epochs)) / group), epochs
    batches = epochs * estimate_batches(opener.examples(feed, None), packer_of(config.batch), SAMPLE)
    steps = max(math.ceil(batches / group), 1)
    log.info("data: %s rows, about %s steps by a sample (data.count=exact reads all)", f"{feed.rows:,}", f"{steps:,}")
    return steps, None


def packer_of(batch: BatchSection) -> Packer:
    """Return the packer of a configuration."""
    if batch.pack:
        return Packer(batch.size * batch.length, window=batch.window)
    return Packer(batch.size * batch.length, limit=batch.size, window=1)


def _split(parts: Sequence[Part], held_out: float, seed: int) -> tuple[list[Part], list[Part]]:
    """Return every part without, and with only, the rows that are held out of it."""
    if held_out >= 1 and len(parts) > 1:
        raise ConfigError(
            f"data.validation={held_out:g} rows of several sources",
            fix="give a share, which is held out of each, or a path",
        )
    train, held = [], []
    for part in parts:
        if part.indices is None:
            raise ConfigError(
                "data.validation is a share, but this source can only be read in order", fix="give a path instead"
            )
        kept, out = split_rows(len(part.indices), held_out, seed)
        train.append(replace(part, indices=kept))
        held.append(replace(part, indices=out))
    return train, held


def _number(value: float | str | None) -> float | str | None:
    """Return a share or number of rows as a float, also where it was written as text; anything else is a path."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return value
