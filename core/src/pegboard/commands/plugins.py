"""`peg plugins`: what is installed, and whether it works."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pegboard.cli import LazyGroup
from pegboard.errors import PluginError, nearest
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import PluginRecord, scan


@click.group(cls=LazyGroup, prefix="plugins.")
def plugins() -> None:
    """List, show and check plugins."""


@plugins.command("list")
@click.option("--kind", help="Only plugins of this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of all fields.")
def list_plugins(kind: str | None, as_json: bool) -> None:
    """List the installed plugins from their metadata; nothing is imported."""
    index = scan()
    if kind is not None and kind not in GROUPS:
        raise PluginError(
            f"there is no plugin kind {kind!r}{nearest(kind, GROUPS)}", fix=f"kinds are: {', '.join(GROUPS)}"
        )
    records = list(index.records) if kind is None else index.of_kind(kind)
    if as_json:
        click.echo(json.dumps([asdict(record) for record in records], indent=2))
    elif records:
        click.echo(table(records))
    else:
        click.echo("no plugin is installed" if kind is None else f"no plugin of kind {kind} is installed")
    for problem in index.problems:
        click.echo(f"warning: {problem}", err=True)


def table(records: list[PluginRecord]) -> str:
    """Return the records as aligned columns; a reason takes the place of the summary."""
    head = ("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY")
    rows = [head, *((r.kind, r.name, r.dist, r.version, r.status, r.reason or r.summary) for r in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )
