"""The source of the workspace, as syntax trees."""

from __future__ import annotations

import ast
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    def imports(self, *, everywhere: bool = True) -> Iterator[str]:
        """Yield the modules that it imports; `everywhere` includes those inside functions and for type checking only."""
        nodes = ast.walk(self.tree) if everywhere else _when_imported(self.tree)
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module or ""

    def words(self) -> Iterator[tuple[int, str]]:
        """Yield (line, text) of every name, string and comment."""
        with self.path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT):
                    yield token.start[0], token.string


def _when_imported(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _when_imported(node)


@dataclass(frozen=True)
class Dist:
    """A member of the workspace."""

    folder: Path
    project: dict[str, Any]

    def __str__(self) -> str:
        return str(self.project["name"])

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def modules(self) -> list[Module]:
        return [Module(path) for path in sorted((self.folder / "src").rglob("*.py")) if "templates" not in path.parts]

    @property
    def package(self) -> str:
        return next(path.name for path in (self.folder / "src").iterdir() if (path / "__init__.py").is_file())

    @property
    def needs(self) -> set[str]:
        """Distributions that it requires, those of its extras included."""
        extras = self.project.get("optional-dependencies", {}).values()
        lines = [*self.project["dependencies"], *(line for extra in extras for line in extra)]
        return {re.split(r"[<>=!~\[; ]", line)[0] for line in lines}


def all_dists() -> list[Dist]:
    patterns = ("core", "sdk", "backends/*", "plugins/*", "recipes/*")
    files = sorted(path for pattern in patterns for path in ROOT.glob(f"{pattern}/pyproject.toml"))
    return [Dist(path.parent, tomllib.loads(path.read_text(encoding="utf-8"))["project"]) for path in files]


@pytest.fixture(scope="session")
def dists() -> list[Dist]:
    return all_dists()


@pytest.fixture(scope="session")
def core(dists: list[Dist]) -> Dist:
    return next(dist for dist in dists if dist.name == "pegboard")
