"""What a sweep came to: a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pegboard.interfaces.search import Axis, Trial
from pegboard_plot.curves import COLOURS, draw_metric, new_figure
from pegboard_plot.runs import read_runs
from pegboard_sweep.sweep import Sweep, setting
from pegboard_sweep.trials import SweepFolder

MANY = 30
"""Most settings whose names fit below a panel."""


def metric_name(sweep: Sweep, folder: SweepFolder) -> str:
    """Return the metric that runs were compared by."""
    done = [trial.number for trial in folder.ended.values() if trial.status == "finished"]
    return sweep.value(folder, done[0])[0] if done else sweep.metric or "loss"


def rows(sweep: Sweep, folder: SweepFolder) -> list[dict[str, Any]]:
    """Return a row for each run that ended, best first, ready for JSON."""
    metric = metric_name(sweep, folder)
    return [
        {
            "trial": trial.number,
            **trial.point,
            metric: trial.value,
            "status": trial.status,
            "seconds": round(folder.seconds[trial.number], 1),
            "folder": str(folder.run_folder(trial.number)),
        }
        for trial in folder.ranked(maximise=sweep.maximise)
    ]


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows as lines, without the folder."""
    if not found:
        return ["no run has ended"]
    names = [name for name in found[0] if name != "folder"]
    cells = [names, *([_cell(row.get(name)) for name in names] for row in found)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]


def picture(sweep: Sweep, folder: SweepFolder, path: Path) -> None:
    """Draw the curves of the runs that finished, and the metric over each setting."""
    done = [trial for trial in folder.ranked(maximise=sweep.maximise) if trial.status == "finished"]
    if not done:
        return
    metric = metric_name(sweep, folder)
    labels = {folder.run_folder(trial.number) / "metrics.jsonl": setting(trial.point) for trial in done}
    runs = read_runs(list(labels))
    figure, panels = new_figure(1 + len(sweep.axes))
    draw_metric(panels[0], runs, metric.removeprefix("validation/"), labels=labels)
    for axes, axis in zip(panels[1:], sweep.axes, strict=True):
        _over_setting(axes, axis, done, metric)
    figure.suptitle(f"{sweep.recipe}: {len(done)} runs, the best with {setting(done[0].point)}")
    figure.savefig(path, dpi=120)


def _over_setting(axes: Any, axis: Axis, done: Sequence[Trial], metric: str) -> None:
    """Draw the metric over one setting, as a number where it is one."""
    texts = [trial.point[axis.key] for trial in done]
    numbers = [_number(text) for text in texts]
    values = [trial.value for trial in done]
    places: list[float] = [number for number in numbers if number is not None]
    if len(places) < len(numbers):
        names = list(dict.fromkeys(axis.values or sorted(texts)))
        places = [float(names.index(text)) for text in texts]
        axes.set_xticks(range(len(names)), names if len(names) <= MANY else [""] * len(names))
    elif min(places) > 0 and (axis.log or max(places) >= 20 * min(places)):
        axes.set_xscale("log")
    axes.plot(places, values, "o", color=COLOURS[0], alpha=0.7)
    axes.plot(places[:1], values[:1], "o", color=COLOURS[1], markersize=10, label="best")
    axes.set(xlabel=axis.key, ylabel=metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
