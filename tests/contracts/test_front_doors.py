"""Every front door of the workspace passes the standard tests of front doors, whatever its kind."""

from __future__ import annotations

from typing import Any

import pytest

from pegboard.plugins.doors import open_door
from pegboard.plugins.index import scan
from pegboard_sdk.conformance import PluginSuite
from pegboard_sdk.conformance.guard import standard_tests

RECORDS = [record for record in scan().records if record.dist.startswith("pegboard-")]


def test_there_are_front_doors(dists: list[Any]) -> None:
    assert {record.dist for record in RECORDS} == {dist.name for dist in dists} - {"pegboard", "pegboard-rollouts"}


@pytest.mark.parametrize("test", standard_tests(PluginSuite))
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.kind}-{record.name}")
def test_front_door(record: Any, test: str) -> None:
    suite = type("Suite", (PluginSuite,), {"spec": open_door(record)})
    getattr(suite(), test)()
