"""The data behind `pip install …` in errors. That it agrees with the workspace is checked in tests/contracts."""

from __future__ import annotations

from pegboard.plugins.groups import GROUPS
from pegboard.plugins.known import known_plugins


def test_kinds_exist() -> None:
    assert set(known_plugins()) <= set(GROUPS)
    assert all(dist.startswith("pegboard-") for names in known_plugins().values() for dist in names.values())
