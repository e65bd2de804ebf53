"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping

SHORT = {"tokens_per_second": "tok/s", "grad_norm": "norm", "validation/loss": "validation"}
BAR = ("loss", "validation/loss", "tokens_per_second")


def number(value: float) -> str:
    """Return four significant digits: 2.345, 0.0002, 12,345, 1.2e-07."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 1000 or (value == int(value) and abs(value) < 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def describe(metrics: Mapping[str, float], *, prefixed: bool = False) -> str:
    """Return "loss 2.345  lr 0.0002 …"; `prefixed` keeps the names as they are."""
    return "  ".join(
        f"{name if prefixed else SHORT.get(name, name)} {number(value)}" for name, value in metrics.items()
    )


def summary(metrics: Mapping[str, float]) -> str:
    """Return the few numbers that fit beside a progress bar."""
    return "  ".join(f"{SHORT.get(name, name)} {number(metrics[name])}" for name in BAR if name in metrics)
