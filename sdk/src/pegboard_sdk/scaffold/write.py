"""Filling in the templates."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from pegboard import __version__
from pegboard.errors import ConfigError
from pegboard_sdk.scaffold.names import Names

SUFFIX = ".tmpl"


def write_package(names: Names, dest: Path) -> Path:
    """Write the package's folder into `dest` and return it. It appears whole or not at all.

    Raises ConfigError when `dest` is no folder or has something of that name.
    """
    folder = dest / names.dist
    if not dest.is_dir():
        raise ConfigError(f"{dest} is no folder", fix="make it first, or name another with --dest")
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists", fix="remove it, or choose another --dest, --dist or name")
    temporary = Path(tempfile.mkdtemp(prefix=f".{names.dist}-", dir=dest))
    try:
        for path, text in render(names):
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def render(names: Names) -> Iterator[tuple[str, str]]:
    """Yield (path in the package's folder, text)."""
    fields = {
        "name": names.name,
        "kind": names.kind,
        "dist": names.dist,
        "package": names.package,
        "stem": names.stem,
        "class_name": names.class_name,
        "version": __version__,
    }
    for root in ("common", names.kind):
        for path, template in _templates(files("pegboard_sdk.scaffold") / "templates" / root, ""):
            yield path.replace("__package__", names.package), Template(template).substitute(fields)


def _templates(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _templates(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield prefix + entry.name.removesuffix(SUFFIX), entry.read_text(encoding="utf-8")
