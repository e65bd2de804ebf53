"""`peg doctor`: versions, devices, plugins, what is wrong and how to mend it."""

from __future__ import annotations

import platform as machine
import re
from importlib import metadata
from typing import TYPE_CHECKING

import click

from pegboard import __version__
from pegboard.errors import PegboardError, PluginError

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry


@click.command()
def doctor() -> None:
    """Say what is wrong with this installation and how to mend it. The exit status is 2 when something is."""
    from pegboard.plugins.load import Registry

    registry = Registry.discover()
    problems: list[str] = [f"{problem}" for problem in registry.problems]
    _section("versions", _versions(problems))
    _section("devices", _devices(registry, problems))
    _section("plugins", _plugins(registry, problems))
    notes = [line for lines in registry.hooks.call("doctor") for line in lines]
    if notes:
        _section("observers say", notes)
    if problems:
        _section("wrong", problems)
        raise PluginError(
            f"found {len(problems)} problem{'s' if len(problems) > 1 else ''}", fix="mend what is listed above"
        )
    click.echo("nothing is wrong; `peg plugins check` imports every plugin")


def _section(title: str, lines: list[str]) -> None:
    click.echo(title)
    for line in lines or ["none"]:
        click.echo("  " + line.replace("\n", "\n  "))


def _versions(problems: list[str]) -> list[str]:
    """Return the versions of Python, the core and what it requires."""
    lines = [f"python {machine.python_version()} on {machine.system()} {machine.machine()}", f"pegboard {__version__}"]
    for line in metadata.requires("pegboard") or []:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed\n  fix: pip install '{line}'")
            continue
        from packaging.requirements import Requirement

        if not Requirement(line).specifier.contains(here, prereleases=True):
            problems.append(f"{name} {here} is not a version that pegboard works with\n  fix: pip install '{line}'")
        lines.append(f"{name} {here}")
    return lines


def _devices(registry: Registry, problems: list[str]) -> list[str]:
    """Return what each platform's probe and device list say."""
    from pegboard.plugins.doors import run_probe

    lines: list[str] = []
    for record, spec in registry.candidates("platform"):
        try:
            probe = run_probe(spec)
            if not probe.present:
                lines.append(f"{record.name}: absent ({probe.reason})")
                continue
            if not probe.usable:
                problems.append(f"{record.name} is present but not usable\n  fix: {probe.reason}")
                lines.append(f"{record.name}: broken ({probe.reason})")
                continue
            found = registry.create("platform", record.name).devices()
        except Exception as error:
            text = str(error) if isinstance(error, PegboardError) else f"{type(error).__name__}: {error}"
            problems.append(f"platform {record.name}: {text}")
            lines.append(f"{record.name}: failed")
            continue
        lines += [
            f"{record.name}:{d.index} {d.name}, "
            f"{d.available_memory / 2**30:.1f} of {d.total_memory / 2**30:.1f} GiB available"
            for d in found
        ] or [f"{record.name}: no device"]
    if not registry.records("platform"):
        problems.append("no platform plugin is installed\n  fix: pip install pegboard-cpu")
    return lines


def _plugins(registry: Registry, problems: list[str]) -> list[str]:
    """Open every front door and return a line for each distribution."""
    good: dict[str, list[str]] = {}
    for record in registry.records():
        label = f"{record.dist} {record.version}"
        good.setdefault(label, [])
        try:
            if record.status != "blocked":
                registry.spec(record.kind, record.identity if record.status != "conflict" else record.name)
            good[label].append(f"{record.kind} {record.name}" + (" (blocked)" if record.status == "blocked" else ""))
        except PluginError as error:
            problems.append(str(error))
    return [f"{label}: {', '.join(names) or 'nothing usable'}" for label, names in sorted(good.items())]
