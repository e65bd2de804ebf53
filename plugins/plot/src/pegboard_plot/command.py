"""`peg plot`: curves of runs."""

from __future__ import annotations

from pathlib import Path

import click

NAME = "curves.png"


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="A panel for it; may be repeated.  [default: loss]"
)
@click.option("--x", default="step", show_default=True, type=click.Choice(["step", "tokens"]), help="What lies below.")
@click.option(
    "--smooth",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Of an exponential mean.",
)
@click.option("--log", is_flag=True, help="Logarithmic values.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Default: {NAME} in the run's folder; of several, here.",
)
def plot(runs: tuple[Path, ...], metrics: tuple[str, ...], x: str, smooth: float, log: bool, out: Path | None) -> None:
    """Draw the curves of each RUN: a run's folder, a folder of runs, or a file of metrics."""
    from pegboard_plot.curves import check_picture, draw
    from pegboard_plot.runs import check_metric, read_runs

    if out is not None:
        check_picture(out)
    found = read_runs(runs)
    names = metrics or ("loss",)
    for name in names:
        check_metric(found, name)
    if out is None:
        out = (runs[0] if runs[0].is_dir() else runs[0].parent) / NAME if len(runs) == 1 else Path(NAME)
    title = found[0].name if len(found) == 1 else f"{len(found)} runs"
    draw(found, names, out, x=x, smooth=smooth, log=log, title=title)
    click.echo(out)
