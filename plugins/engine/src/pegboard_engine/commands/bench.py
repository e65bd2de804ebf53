"""`peg bench offline`: generation measured on fixed workloads."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pegboard_engine.commands.options import load, model_options
from pegboard_engine.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM


@click.command("offline")
@click.argument("model")
@click.option("--workload", type=click.Choice(sorted(WORKLOADS)), multiple=True, required=True, help="May be repeated.")
@click.option(
    "--repetitions", default=3, show_default=True, type=click.IntRange(min=1), help="Each with fresh token ids."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@model_options
def offline(model: str, workload: tuple[str, ...], repetitions: int, as_json: bool, **options: Any) -> None:
    """Measure generation with MODEL: greedy, random token ids, fixed lengths; the median of the repetitions after a warm-up."""
    began = time.perf_counter()
    with load(model, options) as llm:
        _run(llm, [([5] * 8, 1)])
        told: dict[str, Any] = {
            "model": model,
            "dtype": str(llm.built.dtype).removeprefix("torch."),
            "platform": llm.built.platform_name,
            "attention": llm.built.attention_name,
            "load_and_first_token_s": round(time.perf_counter() - began, 2),
        }
        _run(llm, [([7] * 64, 16)])
        told["workloads"] = [_measure(llm, WORKLOADS[name], repetitions) for name in workload]
        told["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
            1024 if sys.platform == "linux" else 2**20
        )
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{told['model']}: {told['dtype']}, {told['platform']}, {told['attention']}")
    click.echo(f"load to first token {told['load_and_first_token_s']} s, peak memory {told['peak_rss_mb']:,} MB")
    for row in told["workloads"]:
        runs = ", ".join(f"{value:g}" for value in row["all"])
        click.echo(f"{row['workload']:10} {row['value']:>10g} {row['unit']:16} ({runs})")


def _measure(llm: LLM, workload: Workload, repetitions: int) -> dict[str, Any]:
    values, firsts = [], []
    with click.progressbar(
        range(repetitions), label=workload.name, file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as seeds:
        for seed in seeds:
            requests = workload.requests(seed)
            first, total = _run(llm, requests)
            values.append(workload.metric(requests, first, total))
            firsts.append(first)
    return {
        "workload": workload.name,
        "value": float(f"{statistics.median(values):.4g}"),
        "unit": workload.unit,
        "all": [float(f"{value:.4g}") for value in values],
        "first_token_s": round(statistics.median(firsts), 4),
    }


def _run(llm: LLM, requests: Sequence[tuple[list[int], int]]) -> tuple[float, float]:
    """Run (prompt, output length) pairs together; return the seconds to the first token of any, and to the end."""
    from pegboard.errors import PegboardError
    from pegboard.types import SamplingParams

    engine, began, first, count = llm.engine, time.perf_counter(), 0.0, 0
    for number, (prompt, length) in enumerate(requests):
        engine.add_request(f"bench-{number}", prompt, SamplingParams(max_tokens=length, temperature=0, ignore_eos=True))
    while engine.has_unfinished():
        for output in engine.step():
            first = first or time.perf_counter() - began
            count += len(output.token_ids)
            if output.finish_reason == "error":
                raise PegboardError(f"a request failed: {output.error}", fix="look at the log above")
    total = time.perf_counter() - began
    wanted = sum(length for _, length in requests)
    if count != wanted:
        raise PegboardError(
            f"{count} of {wanted} tokens came: a request ended early", fix="raise --max-model-len or --kv-memory"
        )
    return first, total
