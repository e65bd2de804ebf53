"""The workspace as data: its members, their requirements on each other, and the dependency groups."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DevError(Exception):
    """A mistake or a failed step that is told in a few lines, without a traceback."""


def normalise(name: str) -> str:
    """Return a distribution's name in the one spelling that names are compared in (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """Return the normalised name that a requirement string starts with."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if match is None:
        raise DevError(f"'{requirement}' is not a requirement: expected a distribution's name first")
    return normalise(match[1])


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file as a mapping. Raises DevError naming the file, and the line of a syntax error."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DevError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DevError(f"{path}: not valid TOML: {error}") from error


@dataclass(frozen=True)
class Member:
    """One distribution of the workspace: its folder and its [project] table.

    optional: its build may fail (it compiles something) without stopping a setup. extras: those of its own without which it does nothing,
    for something that another distribution brings where it is used.
    """

    folder: Path
    project: Mapping[str, Any]
    optional: bool = False
    extras: tuple[str, ...] = ()

    @property
    def tried_with(self) -> list[str]:
        """Requirement strings of its `extras`."""
        offered = self.project.get("optional-dependencies", {})
        return [line for extra in self.extras for line in offered[extra]]

    @property
    def name(self) -> str:
        """The normalised name of the distribution."""
        return normalise(self.project["name"])

    @property
    def pyproject(self) -> Path:
        """Its pyproject.toml."""
        return self.folder / "pyproject.toml"

    @property
    def requirements(self) -> list[str]:
        """Requirement strings, without those of extras."""
        return list(self.project.get("dependencies", []))

    @property
    def compiled(self) -> list[Path]:
        """Files that an installation compiles something from: the build script and the C sources. Empty for most members."""
        script = self.folder / "hatch_build.py"
        return [script, *sorted((self.folder / "src").rglob("*.[ch]"))] if script.is_file() else []


@dataclass(frozen=True)
class Workspace:
    """A checkout: its root folder, the top pyproject.toml and the members, sorted by folder."""

    root: Path
    settings: Mapping[str, Any]
    members: tuple[Member, ...]

    @classmethod
    def read(cls, root: Path) -> Workspace:
        """Read the workspace at `root`. Raises DevError for a broken pyproject.toml or a name that two members have."""
        settings = read_toml(root / "pyproject.toml")
        patterns = settings.get("tool", {}).get("pegboard", {}).get("workspace", {}).get("members", [])
        return cls(root, settings, tuple(_discover(root, patterns)))

    @property
    def torch(self) -> str:
        """The version of torch that the tests run with."""
        return str(self.settings["tool"]["pegboard"]["workspace"]["torch"])

    def group(self, name: str) -> list[str]:
        """Return the requirements of a dependency group (PEP 735), included groups resolved, each once.

        Raises DevError for an unknown group and for groups that include each other in a circle.
        """
        groups = {normalise(key): value for key, value in self.settings.get("dependency-groups", {}).items()}
        return list(dict.fromkeys(_resolve(groups, normalise(name), ())))

    def closure(self, member: Member) -> list[Member]:
        """Return `member` and every member that it requires, directly or through another."""
        by_name = {other.name: other for other in self.members}
        found: dict[str, Member] = {}
        waiting = [member]
        while waiting:
            current = waiting.pop()
            if current.name in found:
                continue
            found[current.name] = current
            names = map(requirement_name, current.requirements)
            waiting.extend(by_name[name] for name in names if name in by_name)
        return list(found.values())


def _discover(root: Path, patterns: Iterable[str]) -> Iterable[Member]:
    seen: dict[str, Path] = {}
    folders = {path.parent for pattern in patterns for path in root.glob(f"{pattern}/pyproject.toml")}
    for folder in sorted(folders):
        table = read_toml(folder / "pyproject.toml")
        if "project" not in table:
            continue
        if "name" not in table["project"]:
            raise DevError(f'{folder / "pyproject.toml"}: [project] has no name; add name = "pegboard-..."')
        settings = table.get("tool", {}).get("pegboard", {})
        optional = bool(settings.get("optional", False))
        member = Member(folder, table["project"], optional, tuple(settings.get("extras", ())))
        if member.name in seen:
            raise DevError(f"two members are named {member.name}: {seen[member.name]} and {folder}; rename one")
        seen[member.name] = folder
        yield member


def _resolve(groups: Mapping[str, Any], name: str, path: tuple[str, ...]) -> Iterable[str]:
    if name in path:
        raise DevError(f"dependency groups include each other: {' -> '.join([*path, name])}")
    if name not in groups:
        known = ", ".join(sorted(groups)) or "none"
        raise DevError(f"no dependency group '{name}' in pyproject.toml; there are: {known}")
    for item in groups[name]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping) and set(item) == {"include-group"}:
            yield from _resolve(groups, normalise(str(item["include-group"])), (*path, name))
        else:
            raise DevError(f"dependency group '{name}' holds {item!r}; expected a string or {{include-group = ...}}")
