"""The names of a new plugin, checked before anything is written."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.util import find_spec

from pegboard.errors import ConfigError, nearest
from pegboard.plugins.index import normalise, scan

KINDS = (
    "adapter",
    "attention",
    "grammar",
    "logger",
    "logits_processor",
    "model",
    "objective",
    "parser",
    "platform",
    "source",
    "transform",
)
"""Kinds that there is a template for."""

_SUFFIX = {"attention": "Attention", "logits_processor": "Processor", "model": "Family"}
_NAME = re.compile(r"(?=.{1,60}$)[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """name: in configs and on the command line. dist: for pip. package: for import. stem: of the names of classes."""

    name: str
    kind: str
    dist: str
    package: str
    stem: str

    @property
    def class_name(self) -> str:
        """The implementation's class."""
        return self.stem.removesuffix(suffix := _SUFFIX.get(self.kind, self.kind.capitalize())) + suffix


def choose_names(name: str, kind: str, dist: str | None = None) -> Names:
    """Return the names of a plugin. Raises ConfigError for one that is ill-formed, or taken in this environment."""
    if kind not in KINDS:
        raise ConfigError(
            f"there is no template for the kind {kind!r}{nearest(kind, KINDS)}", fix=f"use one of: {', '.join(KINDS)}"
        )
    _check("plugin", name)
    dist = f"pegboard-{name.replace('_', '-')}" if dist is None else dist
    _check("distribution", dist)
    package = dist.replace("-", "_")
    if keyword.iskeyword(package):
        raise ConfigError(
            f"the package would be called {package!r}, a word of Python's own", fix="choose another --dist"
        )
    _refuse_taken(name, kind, dist, package)
    stem = "".join(part.capitalize() for part in re.split(r"[-_]", name))
    return Names(name, kind, dist, package, stem)


def _check(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a {what}",
            fix="use up to 60 lower-case letters and digits, single hyphens or underscores between them, a letter first",
        )


def _refuse_taken(name: str, kind: str, dist: str, package: str) -> None:
    index = scan()
    for record in index.records:
        if normalise(record.dist) == normalise(dist):
            raise ConfigError(f"the distribution {record.dist} is installed here already", fix="choose another --dist")
        if (record.kind, record.name) == (kind, name):
            raise ConfigError(f"{record.dist} offers {kind} {name!r} already", fix="choose another name")
    if find_spec(package) is not None:
        raise ConfigError(f"there is a package {package!r} in this environment already", fix="choose another --dist")
