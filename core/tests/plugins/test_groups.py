"""The one table of kinds, and front doors as data."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pegboard.interfaces
from pegboard.plugins.doors import import_object
from pegboard.plugins.groups import GROUPS, PREFIX
from pegboard.plugins.hooks import HookSpecs
from pegboard.plugins.spec import PluginSpec, Probe, RecipeSpec


@pytest.mark.parametrize("kind", GROUPS)
def test_every_kind_has_an_interface_in_a_file_of_its_name(kind: str) -> None:
    group = GROUPS[kind]
    assert group.kind == kind
    assert group.entry_point_group == PREFIX + kind
    assert group.interface.startswith(f"pegboard.interfaces.{kind}:")
    assert group.version >= 1
    assert group.summary
    interface = import_object(group.interface)
    assert inspect.getdoc(interface)


def test_every_interface_belongs_to_a_kind() -> None:
    files = {path.stem for path in Path(pegboard.interfaces.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(GROUPS)


def test_interfaces_are_read_without_torch() -> None:
    lines = [f"import pegboard.interfaces.{kind}" for kind in GROUPS]
    code = "; ".join([*lines, "import sys", "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "value", [PluginSpec(kind="model", target="m:T"), RecipeSpec(target="m:T"), Probe(True, True, "")]
)
def test_front_doors_are_frozen_data(value: object) -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        value.kind = "other"  # type: ignore[attr-defined]
    json.dumps(dataclasses.asdict(value))  # type: ignore[call-overload]


def test_every_hook_says_when_it_is_called() -> None:
    for name, hook in vars(HookSpecs).items():
        if not name.startswith("_"):
            assert inspect.getdoc(hook), name
