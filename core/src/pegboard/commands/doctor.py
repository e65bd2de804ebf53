"""`peg doctor`: versions, devices, plugins, what is wrong and how to mend it."""

from __future__ import annotations

import platform as machine
from importlib import metadata

import click

from pegboard import __version__
from pegboard.errors import PluginError
from pegboard.plugins.check import Answer, Question, ask_all
from pegboard.plugins.index import PluginRecord, scan

QUESTIONS: dict[str, Question] = {"platform": "devices", "hooks": "advice"}


@click.command()
@click.option("--timeout", default=60.0, show_default=True, help="Seconds that one plugin may take.")
def doctor(timeout: float) -> None:
    """Say what is wrong with this installation and how to mend it. The exit status is 2 when something is.

    Plugins are asked in processes of their own, so that no plugin can stop the others from being looked at.
    """
    index = scan()
    problems = list(index.problems)
    _section("versions", _versions(problems))
    answers = ask_all([(QUESTIONS.get(r.kind, "door"), r) for r in index.records], timeout=timeout)
    pairs = list(zip(index.records, answers, strict=True))
    problems += [_problem(record, answer) for record, answer in pairs if _is_wrong(answer)]
    platforms = [(record, answer) for record, answer in pairs if record.kind == "platform"]
    _section("devices", [line for pair in platforms for line in _devices(*pair)])
    _section("plugins", _plugins(pairs))
    advice = [line for record, answer in pairs if record.kind == "hooks" for line in answer.lines]
    if advice:
        _section("observers say", advice)
    if not any(answer.status == "ok" and answer.lines for _, answer in platforms):
        problems.append(
            "no platform plugin has a device to compute on\n  fix: pip install pegboard-cpu, or mend the above"
        )
    if problems:
        _section("wrong", problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise PluginError(f"found {count}", fix="mend what is listed above")
    click.echo("nothing is wrong; `peg plugins check` imports every plugin")


def _section(title: str, lines: list[str]) -> None:
    click.echo(title)
    for line in lines or ["none"]:
        click.echo("  " + line.replace("\n", "\n  "))


def _versions(problems: list[str]) -> list[str]:
    """Return the versions of Python, the core and what it requires."""
    from packaging.requirements import Requirement

    lines = [f"python {machine.python_version()} on {machine.system()} {machine.machine()}", f"pegboard {__version__}"]
    for line in _requirements(problems):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, here = requirement.name, _installed(requirement.name)
        if not here:
            problems.append(f"{name} is not installed\n  fix: pip install '{line}'")
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            problems.append(f"{name} {here} is not a version that pegboard works with\n  fix: pip install '{line}'")
        lines.append(f"{name} {here}")
    return lines


def _requirements(problems: list[str]) -> list[str]:
    try:
        return metadata.requires("pegboard") or []
    except metadata.PackageNotFoundError:
        problems.append("pegboard runs without being installed\n  fix: pip install pegboard")
        return []


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _devices(record: PluginRecord, answer: Answer) -> list[str]:
    if answer.status != "ok":
        return [f"{record.name}: {answer.status} ({answer.reason})"]
    # What is indented describes the devices before it.
    lines = [line if line.startswith(" ") else f"{record.name}:{line}" for line in answer.lines]
    return lines or [f"{record.name}: no device"]


def _plugins(pairs: list[tuple[PluginRecord, Answer]]) -> list[str]:
    """Return a line for each distribution with the plugins of it that can be used, and those that are blocked."""
    usable: dict[str, list[str]] = {f"{record.dist} {record.version}": [] for record, _ in pairs}
    for record, answer in pairs:
        if not _is_wrong(answer):
            blocked = " (blocked)" if answer.status == "blocked" else ""
            usable[f"{record.dist} {record.version}"].append(f"{record.kind} {record.name}{blocked}")
    return [f"{label}: {', '.join(names) or 'nothing usable'}" for label, names in sorted(usable.items())]


def _is_wrong(answer: Answer) -> bool:
    """Whether something must be mended: `ok` with a reason is one of two plugins that share a name."""
    return answer.status not in ("ok", "blocked", "absent") or bool(answer.reason and answer.status == "ok")


def _problem(record: PluginRecord, answer: Answer) -> str:
    verbs = {"ok": "is not the only one of its name", "incompatible": "is incompatible"}
    verb = verbs.get(answer.status, answer.status)
    return f"{record.kind} {record.identity} {verb}: {answer.reason}\n  fix: {answer.fix}"
