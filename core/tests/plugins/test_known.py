"""The data behind `pip install …` in errors agrees with the workspace. Run this file to write it anew."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from pegboard.plugins.groups import GROUPS, PREFIX
from pegboard.plugins.known import known_plugins

ROOT = Path(__file__).parents[3]
DATA = ROOT / "core" / "src" / "pegboard" / "plugins" / "known.json"


def offered() -> dict[str, dict[str, str]]:
    """Return kind -> name -> distribution of the members of the workspace."""
    found: dict[str, dict[str, str]] = {}
    for path in ROOT.glob("*/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for group, entries in project.get("entry-points", {}).items():
            if group.startswith(PREFIX):
                found.setdefault(group.removeprefix(PREFIX), {}).update(dict.fromkeys(entries, project["name"]))
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found)}


def test_agrees_with_the_workspace() -> None:
    assert known_plugins() == offered(), f"python {Path(__file__).relative_to(ROOT)} writes it anew"


def test_kinds_exist() -> None:
    assert set(known_plugins()) <= set(GROUPS)


if __name__ == "__main__":
    DATA.write_text(json.dumps(offered(), indent=1) + "\n", encoding="utf-8")
