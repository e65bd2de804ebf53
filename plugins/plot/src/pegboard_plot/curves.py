"""Curves of runs as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError
from pegboard_plot.runs import RunMetrics, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, told apart by people who see colours differently."""

SUFFIXES = (".png", ".svg", ".pdf")
LEGEND = 12
"""Most runs that a legend names."""

AXES = {"step": "step", "tokens": "tokens trained on"}


def check_picture(path: Path) -> None:
    """Raise ConfigError when no picture can be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is no picture", fix=f"end its name with one of: {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"the folder {path.absolute().parent} does not exist", fix="make it first")


def smoothed(series: Series, factor: float) -> Series:
    """Return the exponential mean m_t = f · m_(t-1) + (1 - f) · x_t, divided by 1 - f^t, which takes out the start at 0."""
    mean, out = 0.0, []
    for number, (x, value) in enumerate(series, 1):
        mean = factor * mean + (1 - factor) * value
        out.append((x, mean / (1 - factor**number)))
    return out


def new_figure(panels: int) -> tuple[Figure, list[Any]]:
    """Return a figure and its panels, one above the other. No pyplot: no window, no state that outlives it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 3.6 * panels), layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False).flat)


def draw_metric(
    axes: Any,
    runs: Sequence[RunMetrics],
    metric: str,
    *,
    x: str = "step",
    smooth: float = 0.0,
    log: bool = False,
    labels: Mapping[Path, str] | None = None,
) -> None:
    """Draw a metric of runs into a panel, with its validation value where there is one. labels: of runs, by path."""
    if log:
        axes.set_yscale("log")
    for number, run in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        label = (labels or {}).get(run.path, run.name) if number < LEGEND else None
        series = run.series(metric, x)
        if smooth and series:
            _line(axes, series, color=colour, alpha=0.25, linewidth=0.8)
            series = smoothed(series, smooth)
        if series:
            _line(axes, series, color=colour, linewidth=1.4, label=label)
        held_out = run.series(f"validation/{metric}", x)
        if held_out:
            told = f"{label}, validation" if label else None
            _line(axes, held_out, color=colour, linestyle=":", marker="o", markersize=3.5, label=told)
    values = [value for line in axes.get_lines() for value in line.get_ydata() if value > 0]
    if log and values and max(values) < min(values) * (1 + 1e-6):
        axes.autoscale(False, axis="y")  # matplotlib finds no range for a constant
        axes.set_ylim(min(values) / 2, max(values) * 2)
    axes.set(xlabel=AXES[x], ylabel=metric)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        title = f"the first {LEGEND} of {len(runs)}" if len(runs) > LEGEND else None
        axes.legend(fontsize="small", title=title)


def draw(
    runs: Sequence[RunMetrics],
    metrics: Iterable[str],
    path: Path,
    *,
    x: str = "step",
    smooth: float = 0.0,
    log: bool = False,
    title: str = "",
) -> None:
    """Write a picture with a panel for each metric."""
    names = list(metrics)
    figure, panels = new_figure(len(names))
    for axes, name in zip(panels, names, strict=True):
        draw_metric(axes, runs, name, x=x, smooth=smooth, log=log)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _line(axes: Any, series: Series, **style: Any) -> None:
    axes.plot([x for x, _ in series], [value for _, value in series], **style)
