"""How tokens came, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pegboard.errors import ConfigError

if TYPE_CHECKING:
    from pegboard_engine.commands.bench import Run


def check_file(option: str, path: str, *, picture: bool = False) -> None:
    """Raise ConfigError when a file cannot be written there: before the time is spent that it is to show."""
    from importlib.util import find_spec

    if picture and Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{option} {path!r} is no picture", fix="end its name with .png, .svg or .pdf")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{option} {path!r}: its folder does not exist", fix="make the folder, or name another one")
    if picture and find_spec("matplotlib") is None:
        raise ConfigError(f"{option} needs matplotlib, which is not installed", fix="pip install pegboard-engine[plot]")


def draw(runs: Mapping[str, Run], title: str, path: str) -> None:
    """Write a picture of one run a workload: output tokens over time, and how long a token took."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    over_time, latency = figure.subplots(1, 2)
    for name, run in runs.items():
        arrivals = sorted(arrival for times in run.tokens.values() for arrival in times)
        total, sums = 0, []
        for _, count in arrivals:
            total += count
            sums.append(total)
        over_time.step([second for second, _ in arrivals], sums, where="post", label=name)
        gaps = sorted(gap * 1000 for gap in run.gaps)
        if gaps:
            latency.plot(gaps, [(number + 1) / len(gaps) for number in range(len(gaps))], label=name)
    over_time.set(title="output tokens", xlabel="s", ylabel="tokens so far")
    latency.set(title="inter-token latency", xlabel="ms", ylabel="share of tokens that took no longer")
    for axes in (over_time, latency):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
