"""`peg plugins`: what is installed, and whether it works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pegboard.cli import LazyGroup
from pegboard.errors import PluginError, nearest
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import PluginRecord, scan
from pegboard.plugins.load import Registry

if TYPE_CHECKING:
    from pegboard.plugins.check import Answer

DOOR_SECONDS = 60.0


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
        rows = [(r.kind, r.name, r.dist, r.version, r.status, r.reason or r.summary) for r in records]
        click.echo(table(("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY"), rows))
    else:
        click.echo("no plugin is installed" if kind is None else f"no plugin of kind {kind} is installed")
    for problem in index.problems:
        click.echo(f"warning: {problem}", err=True)


@plugins.command("show")
@click.argument("name")
@click.option("--kind", help="Of this kind only, where several kinds have the name.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of its options.")
def show(name: str, kind: str | None, schema: bool) -> None:
    """Show the front doors of the plugins called NAME (or DISTRIBUTION:NAME, or all of a distribution).

    Each is tried in a process of its own first, so that none can end this one.
    """
    from pegboard.plugins.check import ask_all

    registry = Registry(scan())
    found = find(registry, name, kind)
    answers = ask_all([("schema" if schema else "door", record) for record in found], timeout=DOOR_SECONDS)
    if schema:
        schemas: dict[str, Any] = {}
        for record, answer in zip(found, answers, strict=True):
            if answer.status != "ok":
                raise PluginError(f"{record.kind} {record.identity}: {answer.status}: {answer.reason}", fix=answer.fix)
            schemas[f"{record.kind} {record.name}"] = json.loads(answer.lines[0])
        click.echo(json.dumps(schemas, indent=2))
        return
    click.echo("\n\n".join(describe(registry, *pair) for pair in zip(found, answers, strict=True)))


@plugins.command("check")
@click.argument("name", required=False)
@click.option("--kind", help="Only plugins of this kind.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds that one plugin may take.")
def check(name: str | None, kind: str | None, timeout: float) -> None:
    """Import each plugin (or those called NAME) in a process of its own and report which work."""
    from pegboard.plugins.check import ask_all

    registry = Registry(scan())
    records = find(registry, name, kind) if name else registry.records(kind)
    answers = ask_all([("import", record) for record in records], timeout=timeout)
    pairs = list(zip(records, answers, strict=True))
    if pairs:
        rows = [(r.kind, r.name, r.dist, answer.status, answer.reason) for r, answer in pairs]
        click.echo(table(("KIND", "NAME", "DISTRIBUTION", "RESULT", "REASON"), rows))
    bad = [record.identity for record, answer in pairs if answer.status not in ("ok", "blocked")]
    if bad:
        raise PluginError(
            f"{len(bad)} of {len(pairs)} plugins cannot be used: {', '.join(bad)}",
            fix="the reasons stand above; upgrade, re-install or uninstall them",
        )


def find(registry: Registry, name: str, kind: str | None) -> list[PluginRecord]:
    """Return the records that `name` means. Raises PluginError when there is none."""
    records = registry.records(kind)
    found = [record for record in records if record.matches(name)]
    if not found:
        from pegboard.plugins.known import known_plugins

        dists = {known[name] for k, known in known_plugins().items() if kind in (None, k) and name in known}
        known = {text for record in records for text in (record.name, record.dist)}
        raise PluginError(
            f"no installed plugin is called {name!r}{'' if dists else nearest(name, known)}",
            fix=f"pip install {' '.join(sorted(dists))}" if dists else "`peg plugins list` shows what is installed",
        )
    return found


def describe(registry: Registry, record: PluginRecord, answer: Answer) -> str:
    """Return a plugin's record and, where it can be opened, its front door, for people."""
    lines = [
        f"{record.kind} {record.name}",
        f"  distribution  {record.dist} {record.version}",
        f"  summary       {record.summary}",
        f"  front door    {record.value}",
    ]
    if answer.status != "ok":
        lines.append(f"  status        {answer.status}: {answer.reason}")
        return "\n".join([*lines, f"  fix           {answer.fix}"])
    spec = registry.spec(record.kind, record.identity)
    lines += [
        f"  status        {record.status}{': ' + record.reason if record.reason else ''}",
        f"  target        {spec.target}",
        f"  interface     {spec.interface}",
        f"  options       {spec.schema or 'none'}",
        f"  priority      {spec.priority}",
    ]
    if spec.probe:
        lines.append(f"  probe         {spec.probe}")
    lines += [f"  {key:12}  {_short(value)}" for key, value in spec.capabilities.items()]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns; the last one is as long as it likes."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
