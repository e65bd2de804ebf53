"""Figures as a table for people."""

from __future__ import annotations

from collections.abc import Mapping


def lines(told: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a line for each figure, standard errors beside what they belong to."""
    rows = []
    for task, figures in told.items():
        label = task
        for name, value in figures.items():
            if _belongs(name, figures):
                continue
            error = figures.get(_error(name))
            spread = f" ± {error:.4f}" if error is not None else ""
            rows.append((label, name, f"{_number(value)}{spread}"))
            label = ""
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    return [f"{task.ljust(widths[0])}  {name.ljust(widths[1])}  {value}" for task, name, value in rows]


def _error(name: str) -> str:
    """Return what lm-eval calls the standard error of a figure: "acc,filter" -> "acc_stderr,filter"."""
    metric, comma, rest = name.partition(",")
    return f"{metric}_stderr{comma}{rest}"


def _belongs(name: str, figures: Mapping[str, float]) -> bool:
    return any(name == _error(other) for other in figures)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4f}"
