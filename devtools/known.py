"""The core's list of which distribution of this workspace offers which plugin, made from the pyproject.toml files."""

from __future__ import annotations

import json
from pathlib import Path

from devtools.workspace import Workspace

KNOWN = Path("core/src/pegboard/plugins/known.json")
PREFIX = "pegboard."


def known_text(workspace: Workspace) -> str:
    """Return what the file should hold: kind -> name -> distribution, sorted."""
    known: dict[str, dict[str, str]] = {}
    for member in workspace.members:
        for group, names in member.project.get("entry-points", {}).items():
            if group.startswith(PREFIX):
                known.setdefault(group.removeprefix(PREFIX), {}).update(dict.fromkeys(names, member.name))
    return json.dumps(known, indent=1, sort_keys=True) + "\n"
