"""The reference's log-probabilities of a data set, written beside its rows before training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.source import Source
from pegboard.opened import open_any
from pegboard.types import Example, Row
from pegboard_dpo.answers import answer_logps
from pegboard_dpo.config import ReferenceConfig
from pegboard_trainer.collate import collate
from pegboard_trainer.examples import Counts, Limits, fit
from pegboard_trainer.roles import ModelRole

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.interfaces.transform import Transform
    from pegboard.plugins.load import Registry

PARTS = ("chosen", "rejected")
Answered = tuple[dict[str, Any], Example | None]
"""A raw row and its pair, None for a pair that training would leave out too."""


def write_reference(config: ReferenceConfig, registry: Registry) -> int:
    """Write the rows of `config.data` to the file `config.output`, with two columns more; return the number of pairs.

    Sequences are cut to `batch.length` as in the run that will read them, which must have the same length, model and format. The
    file appears when it is whole. Raises ConfigError when it exists, DataError for rows that hold no pair.
    """
    if config.data.mix:
        raise ConfigError("data.mix has several sources", fix="complete them one by one, each with data.path=…")
    output = Path(config.output).expanduser()
    if output.exists():
        raise ConfigError(f"the output file {output} exists", fix="choose another output")
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent} for the output", fix="make it, or choose another output")
    role = _reference(config, registry)
    tokenizer = open_any(registry, config.model.path, config.model.revision).tokenizer(registry)
    source: Source = registry.create("source", config.data.source())
    transform: Transform = registry.create("transform", config.data.format)
    columns = {part: str(config.data.format.get(f"reference_{part}") or f"reference_{part}_logps") for part in PARTS}
    limits = Limits(config.batch.length, config.batch.overlong, config.batch.size)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    pairs = 0
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for group in _groups(_pairs(source, transform, tokenizer, limits), config.batch.size * config.batch.length):
                pairs += _complete(group, role, columns)
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row, _ in group)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return pairs


def _reference(config: ReferenceConfig, registry: Registry) -> ModelRole:
    """Return the reference: the model of the section `reference`, or the policy before it is trained."""
    section = config.model if config.reference is None else config.reference.complete(config.model)
    quantizer = config.quantizer if config.reference is None else config.reference.quantizer
    built = open_any(registry, section.path, section.revision).build(
        registry,
        platform=section.platform,
        device=section.device,
        dtype=section.dtype,
        attention=section.attention,
        quantizer=quantizer,
        phase="train",
    )
    if "OMP_NUM_THREADS" not in os.environ:  # the user's own choice of threads counts
        built.platform.configure()
    built.model.eval().requires_grad_(False)
    return ModelRole(built, trained=False)


def _pairs(source: Source, transform: Transform, tokenizer: Tokenizer, limits: Limits) -> Iterator[Answered]:
    """Yield each row with its pair. Raises DataError naming file, line and field of a row that cannot be used."""
    for index, row in source.rows():
        try:
            made = transform(row, tokenizer)
            example = made[0] if made else None
            if isinstance(example, Row) or len(made) > 1 or (example and tuple(r.part for r in example) != PARTS):
                raise DataError(
                    "the row is no pair of a chosen and a rejected answer", fix="set data.format=preference"
                )
            fitted = None if example is None else fit(example, limits, Counts())
        except DataError as error:
            raise DataError(f"{source.describe(index)}: {error.message}", fix=error.fix) from error
        yield dict(row), fitted


def _groups(pairs: Iterator[Answered], capacity: int) -> Iterator[list[Answered]]:
    """Yield rows, in order, whose pairs together hold at most `capacity` tokens."""
    group: list[Answered] = []
    tokens = 0
    for row, example in pairs:
        size = sum(len(answer.input_ids) for answer in example or ())
        if group and tokens + size > capacity:
            yield group
            group, tokens = [], 0
        group.append((row, example))
        tokens += size
    if group:
        yield group


@torch.no_grad()
def _complete(group: list[Answered], role: ModelRole, columns: Mapping[str, str]) -> int:
    """Put the columns into the rows of a group; return how many hold a pair."""
    found = [(row, example) for row, example in group if example is not None]
    if not found:
        return 0
    logps = iter(answer_logps(role, collate([example for _, example in found]).to(role.built.device)).tolist())
    for row, _ in found:
        row.update({columns[part]: next(logps) for part in PARTS})
    return len(found)
