"""The command `peg plugins new`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    required=True,
    help="platform, attention, model, adapter, objective, logger, logits_processor, grammar or parser.",
)
@click.option(
    "--dest",
    type=click.Path(path_type=Path),
    default=Path("."),
    show_default=True,
    help="The folder that gets the package's folder.",
)
@click.option("--dist", help="The distribution's name; pegboard-NAME if not given.")
def new(name: str, kind: str, dest: Path, dist: str | None) -> None:
    """Write a new plugin NAME: a working package with its conformance test."""
    from pegboard_sdk.scaffold.names import choose_names
    from pegboard_sdk.scaffold.write import write_package

    names = choose_names(name, kind, dist)
    folder = write_package(names, dest)
    click.echo(f"wrote {folder}")
    click.echo(f"try it: pip install -e {folder} && pytest {folder} && peg plugins show {name} --kind {kind}")
