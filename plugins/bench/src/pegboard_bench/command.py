"""`peg bench serve`: a server measured under load."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pegboard.errors import ConfigError

if TYPE_CHECKING:
    from pegboard_bench.plan import Plan
    from pegboard_bench.samples import Sample


@click.command("serve")
@click.argument("url")
@click.option("--model", metavar="NAME", help="What the server calls its model; its first one if not given.")
@click.option(
    "--endpoint",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "completions", "chat"]),
    help="Which one to send to; auto is chat where a prompt is a conversation.",
)
@click.option("--rate", default="inf", show_default=True, metavar="R,R…", help="Requests a second; a run for each.")
@click.option(
    "--burstiness",
    default="1",
    show_default=True,
    metavar="B",
    help="Of the gaps: 1 is Poisson, below in bursts, inf constant.",
)
@click.option("--requests", type=click.IntRange(min=1), help="Of each run; 100 unless --duration is given.")
@click.option(
    "--duration", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Stop sending after S seconds."
)
@click.option("--max-concurrency", type=click.IntRange(min=1), metavar="N", help="Requests that may be open at once.")
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(min=0), help="Requests that do not count.")
@click.option(
    "--workload", default="random", show_default=True, metavar="NAME", help="random, or one of peg bench offline."
)
@click.option("--prompts", metavar="FILE", help="Prompts in place of a workload: JSON lines, a list, or ShareGPT's.")
@click.option(
    "--input-tokens", default="128", show_default=True, metavar="N|A:B", help="Prompts of the workload random."
)
@click.option(
    "--output-tokens", default="64", show_default=True, metavar="N|A:B", help="Answers: random, and of a file."
)
@click.option(
    "--ignore-eos/--keep-eos", default=True, show_default=True, help="Ask for workloads' whole output lengths."
)
@click.option(
    "--goodput", multiple=True, metavar="NAME:MS,…", help="Limits of ttft, tpot, e2el that good requests keep."
)
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(min=0, min_open=True), metavar="S")
@click.option("--api-key", metavar="KEY", envvar="OPENAI_API_KEY", help="Also read: OPENAI_API_KEY.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A further header; may be repeated.")
@click.option("--body", metavar="JSON", help='Fields for every request, such as {"temperature": 1}.')
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option("--seed", default=0, show_default=True, help="Of prompts and times.")
@click.option("--json", "json_file", metavar="FILE", help="Write all figures there; - is standard output.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw latency against rate: .png, .svg or .pdf.")
def serve(url: str, json_file: str | None, plot_file: str | None, **given: Any) -> None:
    """Send requests to the server at URL and tell how long their answers took.

    Latencies are those that a client sees: ttft from sending to the first token, tpot the mean time of a token after it, itl between
    two pieces of an answer, e2el to the last token. A sweep (--rate 1,2,4,inf) sends fresh prompts at each rate.
    """
    import asyncio
    import json

    from pegboard_bench.plan import make_plan
    from pegboard_bench.plot import check_plot, plot
    from pegboard_bench.report import run_lines, sweep_lines

    plan = make_plan(url, **given)
    if plot_file is not None:
        check_plot(plot_file)
    if json_file not in (None, "-"):
        _check_writable(str(json_file))
    told = asyncio.run(_measure(plan))
    if plot_file is not None:
        plot(told["runs"], f"{told['model']}, {told['workload']}", plot_file)
    text = json.dumps(told, indent=2, allow_nan=False)
    if json_file == "-":
        click.echo(text)
        return
    if json_file is not None:
        with open(json_file, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    for run in told["runs"]:
        click.echo("\n".join(run_lines(run)))
    if len(told["runs"]) > 1:
        click.echo("\n".join(["", *sweep_lines(told["runs"])]))


async def _measure(plan: Plan) -> dict[str, Any]:
    """Run a plan and return everything that JSON is to hold."""
    from datetime import UTC, datetime

    from pegboard_bench.client import ask
    from pegboard_bench.load import run
    from pegboard_bench.plan import resolve_target
    from pegboard_bench.report import rate_text
    from pegboard_bench.samples import summary

    began = datetime.now(UTC).isoformat(timespec="seconds")
    runs = []
    async with plan.target.session() as session:
        target = await resolve_target(session, plan.target)
        for prompt in plan.warmup():
            sample = await ask(session, target, prompt, 0.0)
            if sample.failure is not None:
                raise ConfigError(
                    f"{target.url} does not answer: {sample.failure}, {sample.detail}",
                    fix="look at its log; --warmup 0 measures all the same",
                )
        for number, rate in enumerate(plan.rates):
            with _bar(plan, rate) as bar:

                def done(sample: Sample, bar: Any = bar) -> None:
                    bar.update(1)

                samples, seconds = await run(
                    session,
                    target,
                    plan.prompts(number),
                    plan.times(number),
                    plan.extent,
                    concurrency=plan.concurrency,
                    done=done,
                )
            runs.append(
                {
                    "rate": rate_text(rate),
                    "max_concurrency": plan.concurrency,
                    **summary(samples, seconds, plan.objectives),
                }
            )
    told = {"url": target.url, "model": target.model, "endpoint": target.endpoint, "began": began}
    return {**told, **plan.told, "runs": runs}


def _bar(plan: Plan, rate: float) -> Any:
    """Return a progress bar in requests; where only a time is given, of as many as the rate brings in the mean."""
    from pegboard_bench.report import rate_text

    length = plan.extent.requests
    if length is None and plan.extent.seconds is not None and rate != float("inf"):
        length = max(round(rate * plan.extent.seconds), 1)
    label = f"rate {rate_text(rate)}"
    # Without a length click must be given something to count; it shows how many have come.
    iterable = None if length is not None else iter(())
    return click.progressbar(
        iterable, length, label=label, show_pos=True, file=sys.stderr, hidden=not sys.stderr.isatty()
    )


def _check_writable(path: str) -> None:
    from pathlib import Path

    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--json {path!r}: its folder does not exist", fix="make the folder, or name another one")
