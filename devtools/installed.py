"""What is installed in an environment, read from its metadata without starting its Python."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from devtools.workspace import Member, Workspace, normalise

EntryPoints = set[tuple[str, str, str]]
"""Group, name, value."""


def distributions(site_packages: Path) -> dict[str, metadata.Distribution]:
    """Return the distributions in a site-packages folder by normalised name."""
    found: dict[str, metadata.Distribution] = {}
    for path in site_packages.glob("*.dist-info"):
        found[normalise(path.name.removesuffix(".dist-info").rsplit("-", 1)[0])] = metadata.Distribution.at(path)
    return found


def editable_folder(dist: metadata.Distribution) -> Path | None:
    """Return the folder that an editable installation points to, None for any other installation (PEP 610)."""
    text = dist.read_text("direct_url.json")
    record = json.loads(text) if text else {}
    if not record.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(record["url"]).path))


def normal_requirement(requirement: str) -> str:
    """Return a requirement in one spelling: name normalised, specifiers sorted, no blanks, one kind of quotes."""
    head, _, marker = requirement.partition(";")
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(\[[^\]]*\])?\s*(.*)$", head)
    if match is None:
        return requirement
    name, extras, specifiers = match[1], match[2] or "", match[3].strip().removeprefix("(").removesuffix(")")
    parts = sorted(part.replace(" ", "") for part in specifiers.split(",") if part.strip())
    words = re.sub(r"\s+", "", marker).replace("'", '"')
    return normalise(name) + re.sub(r"\s", "", extras) + ",".join(parts) + (";" + words if words else "")


def disagreements(member: Member, dist: metadata.Distribution | None) -> list[str]:
    """Return how an installed distribution differs from the member's pyproject.toml, one line each; empty when it agrees."""
    if dist is None:
        return [f"{member.name} is not installed"]
    folder = editable_folder(dist)
    if folder is None or folder.resolve() != member.folder.resolve():
        return [f"{member.name} is installed from {folder or 'a wheel'}, not from {member.folder}"]
    found = dist.metadata
    lines = []
    for key, expected in (
        ("Version", member.project.get("version")),
        ("Summary", member.project.get("description")),
    ):
        value = found[key] if key in found else None
        if expected is not None and value != expected:
            lines.append(f"{member.name}: {key} is {value!r}, pyproject.toml says {expected!r}")
    wanted = {normal_requirement(text) for text in member.requirements}
    have = {normal_requirement(text) for text in dist.requires or [] if not re.search(r";.*\bextra\b", text)}
    lines += _difference(member.name, "requirement", wanted, have)
    lines += _difference(member.name, "entry point", _declared(member), _installed(dist))
    return lines


def all_disagreements(workspace: Workspace, site_packages: Path, skipped: Iterable[str] = ()) -> list[str]:
    """Return the disagreements of all members but those skipped, and members that are gone from the checkout."""
    installed = distributions(site_packages)
    without = set(skipped)
    lines = [
        line
        for member in workspace.members
        if member.name not in without
        for line in disagreements(member, installed.get(member.name))
    ]
    return lines + [f"{name} is installed but no longer a member" for name in orphans(workspace, installed)]


def orphans(workspace: Workspace, installed: Mapping[str, metadata.Distribution]) -> list[str]:
    """Return names of editable installations from this checkout whose member was renamed or removed."""
    names = {member.name for member in workspace.members}
    root = workspace.root.resolve()
    return sorted(
        name
        for name, dist in installed.items()
        if name not in names and (folder := editable_folder(dist)) and root in folder.resolve().parents
    )


def _declared(member: Member) -> EntryPoints:
    groups = dict(member.project.get("entry-points", {}))
    groups["console_scripts"] = member.project.get("scripts", {})
    return {(group, name, value) for group, points in groups.items() for name, value in points.items()}


def _installed(dist: metadata.Distribution) -> EntryPoints:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    # Entry-point names keep their case; configparser lowers them unless told.
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(dist.read_text("entry_points.txt") or "")
    return {(group, name, value) for group in parser.sections() for name, value in parser[group].items()}


def _difference(name: str, what: str, wanted: Collection[object], have: Collection[object]) -> list[str]:
    return [
        *(f"{name}: {what} {item} is not installed" for item in sorted(map(str, set(wanted) - set(have)))),
        *(
            f"{name}: {what} {item} is installed but not in pyproject.toml"
            for item in sorted(map(str, set(have) - set(wanted)))
        ),
    ]
