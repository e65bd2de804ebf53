"""Figures as a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pegboard_bench.samples import PERCENTILES

LATENCIES = (
    ("ttft_ms", "time to first token"),
    ("tpot_ms", "time per output token"),
    ("itl_ms", "inter-token latency"),
    ("e2el_ms", "whole answer"),
)

LATE = 100.0
"""Milliseconds between a request's planned time and its sending that people should hear of."""


def rate_text(rate: float | str) -> str:
    """Return a rate as people write it."""
    value = float(rate)
    return "inf" if math.isinf(value) else f"{value:g}"


def run_lines(told: Mapping[str, Any]) -> list[str]:
    """Return the lines about one run, as `summary` tells it with the "rate" added."""
    lines = [
        f"rate {rate_text(told['rate'])}: {told['completed']} of {told['requests']} requests in {told['duration_s']:.1f} s, "
        f"at most {told['peak_concurrency']} at once",
        f"  {'requests':22}{told['request_throughput']:>12,.2f} a second",
        f"  {'output tokens':22}{told['output_throughput']:>12,.1f} a second",
        f"  {'all tokens':22}{told['total_throughput']:>12,.1f} a second",
    ]
    if told["output_tokens_counted_by"] == "pieces":
        lines.append("  the server tells no usage: each piece of an answer counts as one token")
    heads = "".join(f"{name:>12}" for name in ("mean", *(f"p{p}" for p in PERCENTILES)))
    lines.append(f"  {'milliseconds':22}{heads}")
    for key, name in LATENCIES:
        if (row := told[key]) is not None:
            lines.append(f"  {name:22}" + "".join(f"{value:>12,.1f}" for value in row.values()))
    if good := told.get("goodput"):
        limits = ", ".join(f"{name} {value:g} ms" for name, value in good["objectives_ms"].items())
        lines.append(f"  goodput {good['rate']:,.2f} a second, {good['share']:.1%} of all requests (within {limits})")
    late = told["lateness_ms"]["p99"] if told["lateness_ms"] else 0.0
    if told["max_concurrency"] is None and late > LATE:
        lines.append(f"  the load generator itself was late, by {late:,.0f} ms at p99: it measures its own machine too")
    lines += [
        f"  failed: {row['count']} x {kind}: {row['example']}"
        if row["example"]
        else f"  failed: {row['count']} x {kind}"
        for kind, row in told["failures"].items()
    ]
    return lines


def sweep_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table with a line for each rate."""
    heads = ("rate", "requests/s", "tokens/s", "ttft p50", "ttft p99", "tpot p50", "tpot p99", "failed")
    lines = ["".join(f"{head:>12}" for head in heads)]
    for told in runs:
        cells = [rate_text(told["rate"]), f"{told['request_throughput']:.2f}", f"{told['output_throughput']:.1f}"]
        for key in ("ttft_ms", "tpot_ms"):
            cells += [f"{told[key][p]:.1f}" if told[key] else "-" for p in ("p50", "p99")]
        lines.append("".join(f"{cell:>12}" for cell in (*cells, str(told["failed"]))))
    return lines
