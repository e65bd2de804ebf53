"""`peg sweep`: a recipe with many settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pegboard.errors import ConfigError, PegboardError

if TYPE_CHECKING:
    from pegboard.interfaces.search import Search

TAKEN = ("output", "resume")
"""Keys that a sweep gives its runs itself."""


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=A,B,C | KEY=log(A,B) | KEY=VALUE]...")
@click.option("--config", metavar="NAME|FILE", help="As for peg run.")
@click.option("--output", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Of the sweep.")
@click.option("--search", "name", metavar="NAME", help="A search plugin.  [default: grid, or random with --samples]")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="How many runs.")
@click.option("--seed", default=0, show_default=True, help="Of the search.")
@click.option("--metric", metavar="NAME", help="What runs are compared by.  [default: validation/loss, else loss]")
@click.option("--maximise", is_flag=True, help="A larger value is better.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Runs at once.")
@click.option("--devices", metavar="0,1,…", help="Devices that jobs take in turn.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def sweep(
    recipe: str,
    overrides: tuple[str, ...],
    config: str | None,
    output: Path,
    name: str | None,
    samples: int | None,
    seed: int,
    metric: str | None,
    maximise: bool,
    jobs: int,
    devices: str | None,
    as_json: bool,
) -> None:
    """Train RECIPE with many settings and compare the runs.

    KEY=A,B,C tries each value; KEY=log(1e-5,1e-3), uniform(…), int(…) and logint(…) any number between two. The same command again
    goes on where a sweep stopped.
    """
    from pegboard.plugins.load import Registry
    from pegboard_sweep.axes import parse_axes
    from pegboard_sweep.jobs import Jobs
    from pegboard_sweep.report import picture, rows, table
    from pegboard_sweep.sweep import Sweep
    from pegboard_sweep.trials import SweepFolder

    axes, fixed = parse_axes(overrides)
    _refuse_taken(overrides)
    if not axes:
        raise ConfigError("nothing is varied", fix="give a key several values: optimizer.lr=1e-5,1e-4")
    registry = Registry.discover()
    name = name or ("random" if samples is not None else "grid")
    search: Search = registry.create("search", name)
    found = Sweep(
        registry=registry,
        recipe=recipe,
        config=config,
        axes=axes,
        fixed=fixed,
        search=search,
        total=search.count(axes, samples),
        seed=seed,
        metric=metric,
        maximise=maximise,
        devices=_numbers(devices),
        told=lambda line: click.echo(line, err=True),
    )
    varied = {key: value for key, _, value in (text.partition("=") for text in overrides if text not in fixed)}
    plan = {"recipe": recipe, "config": config, "search": name, "seed": seed, "varied": varied, "fixed": fixed}
    found.check(SweepFolder(output))
    folder = SweepFolder.open(output, plan)
    found.run(folder, Jobs(jobs))
    told = rows(found, folder)
    click.echo(json.dumps(told, ensure_ascii=False, indent=1) if as_json else "\n".join(table(told)))
    picture(found, folder, output / "sweep.png")
    failed = sum(row["status"] == "failed" for row in told)
    if failed:
        raise PegboardError(
            f"{failed} of {len(told)} runs failed", fix=f"look at {output}/trial-….log, and repeat the command"
        )


def _refuse_taken(overrides: tuple[str, ...]) -> None:
    for override in overrides:
        key = override.partition("=")[0].removeprefix("~")
        if key in TAKEN:
            raise ConfigError(
                f"{override}: a sweep gives its runs their {key}", fix="leave it out; --output is the sweep's"
            )


def _numbers(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--devices {text!r} is no list of devices", fix="write --devices 0,1") from None
