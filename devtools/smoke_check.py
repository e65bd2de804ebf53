"""Check one installed distribution from inside its environment: `python -I smoke_check.py NAME WORKSPACE_NAME...`.

Imports every module, loads every entry point and, for plugins, what their specs point to; and compares the imports in
the source with the declared requirements. Prints the problems and exits with 1 when there are any. Standard library only.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

COMES_WITH = {"pydantic-core": "pydantic", "pyyaml": "omegaconf"}
"""Distributions that are part of what another one offers: its errors are theirs, its files are read by them."""


def normalise(name: str) -> str:
    """Return a distribution's name in its normalised spelling (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def modules(dist: metadata.Distribution) -> dict[str, Path]:
    """Return the importable modules of a distribution, `__main__` and files of templates left out."""
    found = {}
    for file in dist.files or []:
        parts = file.with_suffix("").parts
        if file.suffix != ".py" or file.name == "__main__.py" or not all(part.isidentifier() for part in parts):
            continue
        if "templates" in parts or "testdata" in parts:
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(names)] = Path(str(dist.locate_file(file)))
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (top-level module, line) of imports that must work: those under TYPE_CHECKING or guarded by try are left out."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        children: Iterable[ast.AST] = tree.orelse
    elif isinstance(tree, ast.Try) and any(
        "ImportError" in _caught(h) or "ModuleNotFoundError" in _caught(h) for h in tree.handlers
    ):
        children = [*tree.handlers, *tree.orelse, *tree.finalbody]
    else:
        children = ast.iter_child_nodes(tree)
        if isinstance(tree, ast.Import):
            yield from ((alias.name.split(".")[0], tree.lineno) for alias in tree.names)
        elif isinstance(tree, ast.ImportFrom) and tree.level == 0 and tree.module:
            yield tree.module.split(".")[0], tree.lineno
    for child in children:
        yield from imports(child)


def undeclared(dist: metadata.Distribution, workspace: set[str]) -> Iterator[str]:
    """Yield imports of distributions that neither this one nor a workspace distribution that it requires declares."""
    providers = metadata.packages_distributions()
    own = {name.split(".")[0] for name in modules(dist)}
    allowed = {normalise(dist.metadata["Name"])}
    for name in workspace:
        for text in metadata.requires(name) or []:
            match = re.match(r"[A-Za-z0-9._-]+", text)
            if match:
                allowed.add(normalise(match[0]))
    for module, path in modules(dist).items():
        for top, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if top in sys.stdlib_module_names or top in own:
                continue
            names = {normalise(name) for name in providers.get(top, [top])}
            if not (names | {COMES_WITH.get(name, name) for name in names}) & allowed:
                yield f"{module}, line {line}: imports {top} of {'/'.join(sorted(names))}, which pyproject.toml does not declare"


def broken_modules(dist: metadata.Distribution) -> Iterator[str]:
    """Yield modules whose import raises."""
    for name in modules(dist):
        try:
            importlib.import_module(name)
        except BaseException as error:
            yield f"import {name}: {type(error).__name__}: {error}"


def broken_entry_points(dist: metadata.Distribution) -> Iterator[str]:
    """Yield entry points that do not load, and plugin specs whose target, schema or probe does not."""
    for point in dist.entry_points:
        try:
            value = point.load()
            for field in ("target", "schema", "probe"):
                path = getattr(value, field, None) if point.group.startswith("pegboard.") else None
                if path is not None:
                    metadata.EntryPoint(field, path, point.group).load()
        except BaseException as error:
            yield f"entry point {point.group} {point.name} = {point.value}: {type(error).__name__}: {error}"


def _caught(handler: ast.ExceptHandler) -> str:
    return ast.unparse(handler.type) if handler.type else ""


def main(name: str, workspace: set[str]) -> int:
    """Print the problems of distribution `name` and return the exit status."""
    dist = metadata.distribution(name)
    problems = [*undeclared(dist, workspace | {name}), *broken_modules(dist), *broken_entry_points(dist)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], set(sys.argv[2:])))
