"""What an epoch of the data holds."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

from pegboard.errors import ConfigError, DataError
from pegboard.types import Example
from pegboard_trainer.examples import Counts, Limits, fit
from pegboard_trainer.inspect.opened import Opened

SHOWN = 10
"""Bad rows that are named."""

PERCENTILES = (50, 90, 95, 99)


def collect(opened: Opened, rows: int | None, step: Callable[[], None]) -> dict[str, Any]:
    """Return the statistics of an epoch, or of its first `rows`, as JSON values; `step` is called after each row.

    Raises ConfigError for data without an end where no number of rows is given.
    """
    feed, batch = opened.examples.feed, opened.config.batch
    if feed.rows is None and rows is None:
        raise ConfigError("the data can only be read in order, perhaps without end", fix="give --rows N")
    limits = Limits(batch.length, batch.overlong, batch.size)
    counts, packer = Counts(), opened.packer()
    lengths: list[int] = []
    learned = read = batches = too_long = 0
    bad: list[tuple[tuple[int, int], str]] = []
    sources: list[dict[str, Any]] = [
        {"source": _name(part.source, part.indices), "rows": 0, "tokens": 0} for part in feed.parts
    ]
    for position, (part, index), load in feed.read(0, 0):
        if position == rows:
            break
        read += 1
        step()
        try:
            examples = feed.parts[part].examples(index, load, opened.tokenizer)
        except DataError as error:
            bad.append(((part, index), error.message))
            continue
        sources[part]["rows"] += 1
        for number, example in enumerate(examples):
            lengths += [len(row.input_ids) for row in example]
            too_long += longest(example) > limits.length
            try:
                fitted = fit(example, limits, counts)
            except DataError as error:
                bad.append(((part, index), f"{feed.describe((part, index))}: {error.message}"))
                continue
            if fitted is not None:
                learned += sum(sum(row.mask[1:]) for row in fitted)
                sources[part]["tokens"] += sum(len(row.input_ids) for row in fitted)
                batches += packer.add((0, position, number), fitted) is not None
    feed.flush()
    batches += len(packer.open)
    group = opened.config.batch.accumulate
    lengths.sort()
    return {
        "rows": read,
        "examples": counts.examples,
        "tokens": counts.tokens,
        "learned": learned,
        "too_long": too_long,
        "cut": counts.truncated,
        "left_out": counts.dropped,
        "lengths": summary(lengths),
        "histogram": histogram(lengths, limits.length),
        "batches": batches,
        "filled": counts.tokens / (batches * packer.capacity) if batches else 0.0,
        "steps": -(-batches // group),
        "sources": sources if len(sources) > 1 else [],
        "bad": len(bad),
        "bad_rows": [message for _, message in sorted(bad)[:SHOWN]],
    }


def longest(example: Example) -> int:
    """Return the tokens of an example's longest sequence."""
    return max(len(row.input_ids) for row in example)


def summary(lengths: Sequence[int]) -> dict[str, float]:
    """Return mean, extremes and percentiles of ascending numbers; of a percentile, the smallest with so many at or below it."""
    if not lengths:
        return {}
    at = {f"p{p}": lengths[max(-(-len(lengths) * p // 100) - 1, 0)] for p in PERCENTILES}
    return {"mean": sum(lengths) / len(lengths), "min": lengths[0], **at, "max": lengths[-1]}


def histogram(lengths: Sequence[int], limit: int, bars: int = 10) -> list[tuple[int, int]]:
    """Return (upper end, how many) of ascending numbers in bins up to `limit`, and one of what is longer."""
    ends = [limit * number // bars for number in range(1, bars + 1)]
    edges = [bisect.bisect_right(lengths, end) for end in ends]
    found = [(end, high - low) for end, low, high in zip(ends, [0, *edges], edges, strict=False)]
    return [*found, (-1, len(lengths) - edges[-1])]


def _name(source: Any, indices: Any) -> str:
    return str(source.describe(0 if indices is None or not len(indices) else int(indices[0]))).partition(",")[0]
