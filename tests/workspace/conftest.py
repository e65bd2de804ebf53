"""A small workspace in a temporary folder, and an interpreter there that plays pip."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devtools.environment import Environment
from devtools.workspace import Workspace

TOP = """
[tool.pegboard.workspace]
members = ["core", "plugins/*"]
torch = "9.9.9"

[dependency-groups]
build = ["hatchling"]
dev = ["pytest", { include-group = "build" }]
"""

# Stands where the environment's Python would: keeps the command lines of `-m pip`, writes the metadata that an editable
# installation leaves, and fails, with the words in the file `fails`, as often as that file has lines.
PIP = """#!{python}
import json, pathlib, sys, tomllib

root = pathlib.Path(__file__).parents[1]
with (root / "calls.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
fails = root / "fails"
lines = fails.read_text().splitlines() if fails.exists() else []
if lines:
    fails.write_text("\\n".join(lines[1:]))
    sys.exit(lines[0])
site = root / "lib" / "python3.12" / "site-packages"
words = sys.argv[1:]
if words[2] == "uninstall":
    for name in words[4:]:
        for path in site.glob(name.replace("-", "_") + "-*"):
            for part in path.iterdir():
                part.unlink()
            path.rmdir()
for flag, word in zip(words, words[1:]):
    if flag != "-e":
        continue
    project = tomllib.loads((pathlib.Path(word) / "pyproject.toml").read_text())["project"]
    folder = site / (project["name"].replace("-", "_") + "-" + project["version"] + ".dist-info")
    folder.mkdir(parents=True, exist_ok=True)
    text = "Metadata-Version: 2.4\\nName: " + project["name"] + "\\nVersion: " + project["version"] + "\\n"
    text += "Summary: " + project["description"] + "\\n"
    text += "".join("Requires-Dist: " + item + "\\n" for item in project.get("dependencies", []))
    (folder / "METADATA").write_text(text)
    points = project.get("entry-points", {{}})
    (folder / "entry_points.txt").write_text(
        "".join("[" + g + "]\\n" + "".join(n + " = " + v + "\\n" for n, v in t.items()) for g, t in points.items())
    )
    url = "file://" + word
    (folder / "direct_url.json").write_text(json.dumps({{"url": url, "dir_info": {{"editable": True}}}}))
"""


def write_member(folder: Path, name: str, *requirements: str, extra: str = "") -> None:
    """Write a member's pyproject.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = json.dumps(list(requirements))
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "0.1.0"\ndescription = "It is {name}"\ndependencies = {listed}\n{extra}'
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Root of a workspace with the members core, a (which requires core and numpy) and b (which requires a)."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text(TOP)
    (root / "constraints.txt").write_text("pytest==1\n")
    write_member(root / "core", "pegboard", "torch>=2.11")
    write_member(
        root / "plugins" / "a",
        "pegboard-a",
        "pegboard==0.1.0",
        "numpy>=1.26",
        extra='[project.entry-points."pegboard.logger"]\nA = "pegboard_a.plugin:SPEC"\n',
    )
    write_member(root / "plugins" / "b", "pegboard-b", "pegboard_a == 0.1.0")
    return root


@pytest.fixture
def environment(checkout: Path) -> Callable[[], Environment]:
    """Read the workspace anew and return its environment, whose pip is the one above."""
    path = checkout / ".venv"
    python = path / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP.format(python=sys.executable))
    python.chmod(0o755)
    (path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.1\n")
    return lambda: Environment(Workspace.read(checkout), path, ("dev",))


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEGBOARD_TORCH", raising=False)
    if os.name == "nt":
        pytest.skip("the interpreter that plays pip is a script with a shebang")
