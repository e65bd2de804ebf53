"""`peg bench offline`: generation measured on fixed workloads."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from pegboard_engine.commands.options import load, model_options
from pegboard_engine.workloads import WORKLOADS, Requests, Workload

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM

PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Run:
    """One run of a workload: seconds from its beginning until the tokens of each request came, in pairs (second, tokens)."""

    tokens: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    total: float = 0.0

    @property
    def first(self) -> float:
        """Seconds to the first token of any request."""
        return min((times[0][0] for times in self.tokens.values()), default=0.0)

    @property
    def gaps(self) -> list[float]:
        """Seconds between one token and the next of a request. Several that came in one step share the time since the step before."""
        found = []
        for times in self.tokens.values():
            for (before, _), (after, count) in pairwise(times):
                found += [(after - before) / count] * count
        return found


@click.command("offline")
@click.argument("model")
@click.option("--workload", type=click.Choice(sorted(WORKLOADS)), multiple=True, required=True, help="May be repeated.")
@click.option(
    "--repetitions", default=3, show_default=True, type=click.IntRange(min=1), help="Each with fresh token ids."
)
@click.option("--seed", default=0, show_default=True, help="Of the first repetition's ids; each next one has the next.")
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write the figures there; alone, or with -, print them in place of the table.",
)
@click.option("--plot", "plot_file", metavar="FILE", help="Draw how tokens came: .png, .svg or .pdf.")
@model_options
def offline(
    model: str,
    workload: tuple[str, ...],
    repetitions: int,
    seed: int,
    json_file: str | None,
    plot_file: str | None,
    **options: Any,
) -> None:
    """Measure generation with MODEL: greedy, random token ids, fixed lengths; the median of the repetitions after a warm-up."""
    from pegboard_engine.commands.plot import check_file, draw

    if json_file not in (None, "-"):
        check_file("--json", str(json_file))
    if plot_file is not None:
        check_file("--plot", plot_file, picture=True)
    began = time.perf_counter()
    runs: dict[str, list[Run]] = {}
    with load(model, options) as llm:
        _run(llm, [([5] * 8, 1)])
        told: dict[str, Any] = {
            "model": model,
            "dtype": str(llm.built.dtype).removeprefix("torch."),
            "platform": llm.built.platform_name,
            "attention": llm.built.attention_name,
            "seed": seed,
            "load_and_first_token_s": round(time.perf_counter() - began, 2),
        }
        _run(llm, [([7] * 64, 16)])
        for name in workload:
            runs[name] = _repeat(llm, WORKLOADS[name], range(seed, seed + repetitions))
        told["workloads"] = [_figures(WORKLOADS[name], seed, runs[name]) for name in runs]
        told["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
            1024 if sys.platform == "linux" else 2**20
        )
    if plot_file is not None:
        draw({name: found[-1] for name, found in runs.items()}, f"{model}, {told['dtype']}", plot_file)
    text = json.dumps(told, indent=2)
    if json_file == "-":
        click.echo(text)
        return
    if json_file is not None:
        with open(json_file, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    click.echo(f"{told['model']}: {told['dtype']}, {told['platform']}, {told['attention']}")
    click.echo(f"load to first token {told['load_and_first_token_s']} s, peak memory {told['peak_rss_mb']:,} MB")
    for row in told["workloads"]:
        all_runs = ", ".join(f"{value:g}" for value in row["all"])
        click.echo(f"{row['workload']:10} {row['value']:>10g} {row['unit']:16} ({all_runs})")
        if row["itl_ms"]:
            shown = ", ".join(f"{name} {value:g}" for name, value in row["itl_ms"].items())
            click.echo(f"{'':10} {'':>10} ms a token       {shown}")


def _repeat(llm: LLM, workload: Workload, seeds: range) -> list[Run]:
    with click.progressbar(seeds, label=workload.name, file=sys.stderr, hidden=not sys.stderr.isatty()) as shown:
        return [_run(llm, workload.requests(seed)) for seed in shown]


def _figures(workload: Workload, seed: int, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what JSON holds of a workload. Latencies between tokens are those of all runs together."""
    import numpy as np

    requests: Requests = workload.requests(seed)  # all seeds have the same lengths
    values = [workload.metric(requests, run.first, run.total) for run in runs]
    gaps = [gap for run in runs for gap in run.gaps]
    places = np.percentile(np.array(gaps) * 1000, PERCENTILES) if gaps else []
    return {
        "workload": workload.name,
        "value": float(f"{statistics.median(values):.4g}"),
        "unit": workload.unit,
        "all": [float(f"{value:.4g}") for value in values],
        "first_token_s": round(statistics.median(run.first for run in runs), 4),
        "itl_ms": {f"p{p}": float(f"{value:.4g}") for p, value in zip(PERCENTILES, places, strict=False)},
    }


def _run(llm: LLM, requests: Requests) -> Run:
    """Run (prompt, output length) pairs together."""
    from pegboard.errors import PegboardError
    from pegboard.types import SamplingParams

    engine, began, run, count = llm.engine, time.perf_counter(), Run(), 0
    for number, (prompt, length) in enumerate(requests):
        engine.add_request(f"bench-{number}", prompt, SamplingParams(max_tokens=length, temperature=0, ignore_eos=True))
    while engine.has_unfinished():
        outputs = engine.step()
        now = time.perf_counter() - began
        for output in outputs:
            if output.token_ids:
                run.tokens.setdefault(output.request_id, []).append((now, len(output.token_ids)))
                count += len(output.token_ids)
            if output.finish_reason == "error":
                raise PegboardError(f"a request failed: {output.error}", fix="look at the log above")
    run.total = time.perf_counter() - began
    wanted = sum(length for _, length in requests)
    if count != wanted:
        raise PegboardError(
            f"{count} of {wanted} tokens came: a request ended early", fix="raise --max-model-len or --kv-memory"
        )
    return run
