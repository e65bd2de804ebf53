"""What is installed, from one scan of `importlib.metadata`. Nothing of a plugin is imported here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Literal

from pegboard import __version__
from pegboard.plugins.groups import GROUPS, PREFIX

Status = Literal["ok", "blocked", "conflict", "incompatible", "failed"]

ALLOW_VARIABLE = "PEGBOARD_PLUGINS"
BLOCK_VARIABLE = "PEGBOARD_DISABLE_PLUGINS"

_VALUE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One entry point, as its distribution's metadata tells it.

    value: "module:attribute" of the front door. summary: the distribution's one-line summary.
    status: "ok" until something is known against it; reason: what that is, for people.
    """

    kind: str
    name: str
    dist: str
    version: str
    summary: str
    value: str
    status: Status = "ok"
    reason: str = ""

    @property
    def identity(self) -> str:
        """The name that no other plugin of this kind can have."""
        return f"{self.dist}:{self.name}"

    def matches(self, pattern: str) -> bool:
        """Whether an entry of an allow-list or block-list means this plugin.

        Its name, its distribution, or dist:name.
        """
        return pattern in (self.name, self.identity) or normalise(pattern) == normalise(self.dist)


@dataclass(frozen=True, slots=True)
class Index:
    """The records of one scan, sorted by kind, name and distribution, and what could not be read."""

    records: tuple[PluginRecord, ...]
    problems: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[PluginRecord]:
        """Return the records of a kind."""
        return [record for record in self.records if record.kind == kind]


def normalise(dist: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", dist).lower()


def scan(*, disabled: Iterable[str] = (), allowed: Iterable[str] | None = None) -> Index:
    """Scan the installed distributions.

    disabled: names, distributions or dist:name that are blocked, beside those of PEGBOARD_DISABLE_PLUGINS.
    allowed: when given, everything else is blocked; the default is PEGBOARD_PLUGINS, where an empty value allows
    nothing.
    """
    records: list[PluginRecord] = []
    problems: list[str] = []
    seen: set[str] = set()
    for dist in metadata.distributions():
        try:
            records.extend(_read(dist, seen))
        except Exception as error:
            problems.append(f"the metadata of {_where(dist)} cannot be read: {type(error).__name__}: {error}")
    records.sort(key=lambda record: (record.kind, record.name, record.dist))
    return apply_lists(Index(tuple(records), tuple(problems)), disabled=disabled, allowed=allowed)


def apply_lists(index: Index, *, disabled: Iterable[str] = (), allowed: Iterable[str] | None = None) -> Index:
    """Return the index with allow-list and block-list applied, those of the environment included."""
    if allowed is None and ALLOW_VARIABLE in os.environ:
        allowed = _split(os.environ[ALLOW_VARIABLE])
    if allowed is not None:
        entries = list(allowed)
        reason = f"not in the allow-list ({ALLOW_VARIABLE})"
        records = tuple(
            record
            if any(record.matches(entry) for entry in entries)
            else replace(record, status="blocked", reason=reason)
            for record in index.records
        )
        index = Index(records, (*index.problems, *_strangers(index, entries, ALLOW_VARIABLE)))
    return block(index, [*_split(os.environ.get(BLOCK_VARIABLE, "")), *disabled])


def block(index: Index, disabled: Iterable[str]) -> Index:
    """Return the index with `disabled` blocked, then conflicts among what is left found.

    An entry that means no installed plugin becomes a problem: whoever wrote it thinks that something is off.
    """
    entries = list(disabled)
    records = []
    for record in index.records:
        entry = next((entry for entry in entries if record.matches(entry)), None)
        if entry is not None:
            reason = f"disabled as {entry!r} ({BLOCK_VARIABLE} or plugins.disabled)"
            record = replace(record, status="blocked", reason=reason)
        records.append(record)
    problems = _strangers(index, entries, f"{BLOCK_VARIABLE} or plugins.disabled")
    return Index(tuple(find_conflicts(records)), (*index.problems, *problems))


def find_conflicts(records: Iterable[PluginRecord]) -> Iterator[PluginRecord]:
    """Yield the records; those that share kind and name with another usable one become conflicts that name all."""
    usable: dict[tuple[str, str], list[PluginRecord]] = {}
    records = list(records)
    for record in records:
        if record.status in ("ok", "conflict"):
            usable.setdefault((record.kind, record.name), []).append(record)
    for record in records:
        rivals = usable.get((record.kind, record.name), [])
        if record.status in ("ok", "conflict"):
            if len(rivals) > 1:
                offers = " and ".join(f"{r.dist} {r.version}".strip() for r in rivals)
                yield replace(record, status="conflict", reason=f"{record.kind} {record.name!r} is offered by {offers}")
            else:
                yield replace(record, status="ok", reason="")
        else:
            yield record


def _read(dist: metadata.Distribution, seen: set[str]) -> Iterator[PluginRecord]:
    """Yield the records of a distribution. Most distributions are passed by after a look at one small file."""
    text = dist.read_text("entry_points.txt")
    if not text or f"[{PREFIX}" not in text.replace(" ", ""):
        return
    head = _header(dist)
    name = head.get("name", [""])[0]
    if not name:
        raise ValueError("it has no Name")
    if normalise(name) in seen or not _in_force(dist, name, text):
        return
    seen.add(normalise(name))
    version, summary = head.get("version", [""])[0], head.get("summary", [""])[0]
    blame = _incompatible(name, head.get("requires-dist", []))
    for entry in _entries(text):
        kind = entry[0].removeprefix(PREFIX)
        record = PluginRecord(kind, entry[1], name, version, summary, entry[2])
        if kind not in GROUPS:
            record = replace(
                record, status="incompatible", reason=f"pegboard {__version__} knows no plugin kind {kind!r}"
            )
        elif blame:
            record = replace(record, status="incompatible", reason=blame)
        elif not _VALUE.fullmatch(entry[2]):
            record = replace(
                record, status="failed", reason=f"its entry point {entry[2]!r} is not of the form module:attribute"
            )
        yield record


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (group, name, value) of our groups; extras after a value are dropped."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group.startswith(PREFIX) and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.partition("[")[0].strip()


def _header(dist: metadata.Distribution) -> dict[str, list[str]]:
    """Return the headers of METADATA (lower case name -> values) without parsing the description, which can be long."""
    text = dist.read_text("METADATA") or dist.read_text("PKG-INFO") or ""
    head: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.strip():
            break
        key, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            head.setdefault(key.strip().lower(), []).append(value.strip())
    return head


def _in_force(dist: metadata.Distribution, name: str, text: str) -> bool:
    """Whether an import would find this copy.

    The first on the path shadows later ones, even when it offers no plugin.
    """
    try:
        return metadata.distribution(name).read_text("entry_points.txt") == text
    except metadata.PackageNotFoundError:
        return True


def _incompatible(name: str, requirements: list[str]) -> str:
    """Return why this pegboard is not one that the distribution asks for, or an empty string.

    Read before anything is imported.
    """
    for line in requirements:
        if (
            not re.match(r"pegboard(?![\w.-])", line, re.IGNORECASE)
            or re.sub(r"[\s()]", "", line) == f"pegboard=={__version__}"
        ):
            continue
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return f"its requirement {line!r} cannot be read"
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(__version__, prereleases=True):
            return f"{name} needs pegboard{requirement.specifier}, this is pegboard {__version__}"
    return ""


def _strangers(index: Index, entries: Iterable[str], where: str) -> list[str]:
    return [
        f"{where} names {entry!r}, which is no installed plugin"
        for entry in entries
        if not any(record.matches(entry) for record in index.records)
    ]


def _split(text: str) -> list[str]:
    return [entry for entry in re.split(r"[,\s]+", text) if entry]


def _where(dist: metadata.Distribution) -> str:
    return str(getattr(dist, "_path", None) or "a distribution")
