"""When requests are sent."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from pegboard.errors import ConfigError


def arrivals(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Yield the times of requests, in seconds from the beginning; without end.

    rate: requests a second in the mean; infinite for all at once. burstiness: shape of the gamma distribution of the gaps between
    them, whose mean is 1 / rate: 1 is a Poisson process, less comes in bursts, more is more even, infinity is constant.
    """
    source, now = random.Random(seed), 0.0
    while True:
        yield now
        if math.isinf(rate):
            continue
        now += 1 / rate if math.isinf(burstiness) else source.gammavariate(burstiness, 1 / (rate * burstiness))


def read_rates(text: str) -> list[float]:
    """Return the rates of a list such as "1,2.5,inf". Raises ConfigError for what is no rate."""
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not rate > 0:
            raise ConfigError(
                f"--rate {text!r}: {part!r} is no rate",
                fix="give requests a second above 0, or inf, with commas between",
            )
        rates.append(rate)
    return rates


def read_objectives(texts: tuple[str, ...]) -> dict[str, float]:
    """Return the objectives of texts such as "ttft:500,tpot:50", in milliseconds. Raises ConfigError."""
    from pegboard.errors import nearest
    from pegboard_bench.samples import OBJECTIVES

    found: dict[str, float] = {}
    for part in ",".join(texts).replace(" ", ",").split(",") if texts else ():
        name, _, value = part.partition(":")
        if name not in OBJECTIVES:
            raise ConfigError(
                f"--goodput {part!r}: there is no {name!r}{nearest(name, OBJECTIVES)}",
                fix=f"give NAME:MILLISECONDS of {', '.join(OBJECTIVES)}, with commas between",
            )
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not found[name] > 0:
            raise ConfigError(f"--goodput {part!r} is no limit", fix="give milliseconds above 0, such as ttft:500")
    return found
