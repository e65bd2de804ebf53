"""What every distribution keeps to."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from devtools.known import KNOWN, known_text
from devtools.workspace import Workspace

VENDOR = re.compile(r"torch\.(cuda|xpu|mps|hip)\b|\bis_cuda\b|\bnccl\b|get_device_capability")


def imported(module: Any, **options: bool) -> set[str]:
    return {name.partition(".")[0] for name in module.imports(**options)}


def test_vendors_are_named_under_backends_only(dists: list[Any]) -> None:
    wrong = []
    for dist in dists:
        if dist.folder.parent.name == "backends":
            continue
        for module in dist.modules:
            lines = enumerate(module.path.read_text(encoding="utf-8").splitlines(), 1)
            wrong += [f"{module}:{number}: {line.strip()}" for number, line in lines if VENDOR.search(line)]
    assert not wrong, "\n".join(wrong)


def test_front_doors_import_the_spec_and_the_standard_library_only(dists: list[Any]) -> None:
    doors = 0
    for dist in dists:
        groups = dist.project.get("entry-points", {})
        entries = [
            value for group, names in groups.items() if group.startswith("pegboard.") for value in names.values()
        ]
        for module_name in {value.partition(":")[0] for value in entries}:
            path = dist.folder / "src" / Path(*module_name.split(".")).with_suffix(".py")
            module = next(m for m in dist.modules if m.path == path)
            doors += 1
            allowed = {"__future__", *sys.stdlib_module_names}
            wrong = [n for n in module.imports() if n != "pegboard.plugins.spec" and n.partition(".")[0] not in allowed]
            assert not wrong, f"{module} imports {wrong}"
    assert doors >= len(dists) - 2


def test_plugins_import_other_plugins_that_they_require(dists: list[Any]) -> None:
    owner = {dist.package: dist.name for dist in dists}
    wrong = []
    for dist in dists:
        for module in dist.modules:
            for package in imported(module) & set(owner):
                if owner[package] != dist.name and owner[package] not in dist.needs:
                    wrong.append(f"{module} imports {package}, {dist.name} does not require {owner[package]}")
    assert not wrong, "\n".join(wrong)


def test_packages_import_no_torch(dists: list[Any]) -> None:
    """A front door lives in its package, so the package itself must be light."""
    for dist in dists:
        for module in dist.modules:
            if module.path == dist.folder / "src" / dist.package / "__init__.py":
                heavy = imported(module, everywhere=False) & {
                    "torch",
                    "numpy",
                    "pydantic",
                    "omegaconf",
                    "tokenizers",
                    "rich",
                }
                assert not heavy, f"{module} imports {heavy}"


def test_members_are_complete(dists: list[Any]) -> None:
    versions = {dist.project["version"] for dist in dists}
    assert len(versions) == 1, versions
    (version,) = versions
    for dist in dists:
        readme = dist.folder / "README.md"
        assert len(readme.read_text(encoding="utf-8").splitlines()) > 5, f"{readme} says nothing"
        assert (dist.folder / "src" / dist.package / "py.typed").is_file(), dist.name
        assert list((dist.folder / "tests").rglob("test_*.py")), f"{dist.name} has no tests"
        assert 10 < len(dist.project["description"]) < 140, dist.name
        assert dist.project["license"] == "Apache-2.0"
        ours = [line for line in dist.project["dependencies"] if line.startswith("pegboard")]
        assert all(line.endswith(f"=={version}") for line in ours), f"{dist.name}: {ours}"
        assert not list((dist.folder / "tests").rglob("__init__.py")), f"{dist.name}: packages under tests/"


def test_the_readme_lists_every_member(dists: list[Any]) -> None:
    root = next(dist.folder.parent for dist in dists if dist.name == "pegboard")
    table = (root / "README.md").read_text(encoding="utf-8")
    missing = [dist.name for dist in dists if f"`{dist.name}`" not in table]
    assert not missing, f"README.md lacks {missing}"


def test_known_plugins_are_those_of_the_workspace(dists: list[Any], core: Any) -> None:
    written = (core.folder / KNOWN.relative_to("core")).read_text(encoding="utf-8")
    assert written == known_text(Workspace.read(core.folder.parent)), f"renew {KNOWN}: `python dev.py known`"


@pytest.mark.parametrize("word", ["NotImplementedError", "TODO", "FIXME", "XXX"])
def test_nothing_is_left_open(dists: list[Any], word: str) -> None:
    # A suite of the SDK leaves to its subclasses what only they can know.
    others = [dist for dist in dists if dist.name != "pegboard-sdk" or word != "NotImplementedError"]
    places = [f"{m}:{line}" for dist in others for m in dist.modules for line, text in m.words() if word in text]
    assert not places, places
