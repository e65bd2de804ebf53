"""Latency against rate as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pegboard.errors import ConfigError
from pegboard_bench.report import rate_text
from pegboard_bench.samples import PERCENTILES

PANELS = (("ttft_ms", "time to first token"), ("tpot_ms", "time per output token"), ("itl_ms", "inter-token latency"))
COLOURS = ("#1b6ca8", "#d98e04", "#b3262e")
"""Of the percentiles, told apart by people who see red and green as one."""


def check_plot(path: str) -> None:
    """Raise ConfigError when no picture can be written there: before the time is spent that it is to show."""
    from importlib.util import find_spec

    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path!r} is no picture", fix="end its name with .png, .svg or .pdf")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--plot {path!r}: its folder does not exist", fix="make the folder, or name another one")
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed", fix="pip install 'pegboard-bench[plot]'")


def plot(runs: Sequence[Mapping[str, Any]], title: str, path: str) -> None:
    """Write a picture with a panel for each latency, and one for what went through, over the rates of `runs`."""
    from matplotlib.figure import Figure

    # A figure without pyplot: no window, no state that outlives it.
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    labels = [rate_text(told["rate"]) for told in runs]
    places = range(len(runs))
    for axes, (key, name) in zip(panels, PANELS, strict=False):
        for percentile, colour in zip(PERCENTILES, COLOURS, strict=True):
            points = [
                (place, told[key][f"p{percentile}"]) for place, told in zip(places, runs, strict=True) if told[key]
            ]
            axes.plot(*zip(*points, strict=True) if points else ((), ()), "o-", color=colour, label=f"p{percentile}")
        axes.set(title=name, ylabel="ms")
        axes.legend()
    last = panels[3]
    last.plot(places, [told["output_throughput"] for told in runs], "o-", color=COLOURS[0])
    last.set(title="output tokens", ylabel="a second")
    for axes in panels:
        axes.set_xticks(list(places), labels)
        axes.set(xlabel="requests a second, offered")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
