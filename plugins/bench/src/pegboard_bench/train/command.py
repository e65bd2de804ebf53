"""`peg bench train`: training steps measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click

from pegboard.errors import ConfigError


@click.command("train")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", "configs", multiple=True, required=True, metavar="NAME|FILE", help="May be repeated.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(min=1), help="Steps that count.")
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(min=0), help="Steps before them.")
@click.option("--size", default=4, show_default=True, type=click.IntRange(min=1), help="Sequences of a step.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(min=2), help="Tokens of each.")
@click.option(
    "--repetitions", default=1, show_default=True, type=click.IntRange(min=1), help="Of all configs, in turn."
)
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write the figures there; alone, print them.",
)
def train(
    recipe: str,
    overrides: tuple[str, ...],
    configs: tuple[str, ...],
    steps: int,
    warmup: int,
    size: int,
    length: int,
    repetitions: int,
    json_file: str | None,
) -> None:
    """Measure training steps of RECIPE with each config: tokens a second, seconds, memory, utilisation.

    Every run is `peg run` in a process of its own over random tokens, written nowhere; OVERRIDES, such as model=…, are those of
    peg run.
    """
    from pegboard_bench.train.measure import Plan, measure

    if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
        raise ConfigError(
            f"--json {json_file!r}: its folder does not exist", fix="make the folder, or name another one"
        )
    if any(text.startswith("output=") for text in overrides):
        raise ConfigError("nothing is written that output could be", fix="leave output=… out")
    plan = Plan(recipe, steps, warmup, size, length, overrides)
    runs = []
    for turn in range(repetitions):
        # Every other turn backwards, so that a machine that grows slow or fast favours none.
        for config in configs if turn % 2 == 0 else configs[::-1]:
            click.echo(f"{config}: {steps} steps of {size} x {length} tokens after {warmup}", err=True)
            runs.append(measure(plan, config))
    told = {"recipe": recipe, "overrides": list(overrides), "size": size, "length": length, "runs": runs}
    text = json.dumps({**told, "medians": medians(runs)}, indent=2, ensure_ascii=False)
    if json_file == "-":
        click.echo(text)
        return
    if json_file is not None:
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    click.echo("\n".join(table(medians(runs))))


def medians(runs: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the medians of each config over its runs."""
    told: dict[str, dict[str, float | None]] = {}
    for config in dict.fromkeys(run["config"] for run in runs):
        own = [run for run in runs if run["config"] == config]
        told[config] = {}
        for name in ("tokens_per_second", "step_seconds", "memory_gb", "mfu"):
            values = [run[name] for run in own if run[name] is not None]
            told[config][name] = statistics.median(values) if values else None
    return told


def table(told: dict[str, dict[str, float | None]]) -> list[str]:
    """Return a line for each config."""
    width = max(len("config"), *(len(Path(config).stem) for config in told))
    heads = ("tokens/s", "s a step", "memory GB", "mfu")
    lines = [f"{'config':{width}}" + "".join(f"{head:>12}" for head in heads)]
    for config, figures in told.items():
        cells = (
            f"{figures['tokens_per_second']:,.1f}",
            f"{figures['step_seconds']:.3f}",
            f"{figures['memory_gb']:.2f}",
            "-" if figures["mfu"] is None else f"{figures['mfu']:.1%}",
        )
        lines.append(f"{Path(config).stem:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return lines
