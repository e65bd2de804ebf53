"""Which distributions of this project offer which plugins: read for the fix of an error, never to find or choose one.

`known.json` is data made from the workspace's pyproject.toml files; a name that is not in it gets no pip command,
because nobody knows who owns such a name on a package index.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path


@cache
def known_plugins() -> dict[str, dict[str, str]]:
    """Return kind -> name -> distribution."""
    known: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))
    return known
