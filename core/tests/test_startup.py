"""What may be imported when: the budgets of starting up, as the modules that must not be there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "pydantic", "omegaconf", "yaml", "numpy", "safetensors", "packaging"}
WATCH = """
import json, sys
{code}
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
RUN = "from pegboard.cli import run_cli\nassert run_cli({args!r}) == 0"
DOOR = """
from pegboard.plugins.spec import PluginSpec
S = PluginSpec(kind="adapter", target="heavy_impl:T", schema="heavy_impl:Options")
"""


def modules(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after running `code`."""
    done = subprocess.run([sys.executable, "-c", WATCH.format(code=code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def heavy(site):
    """A plugin whose front door is light and whose implementation is not."""
    modules = {"heavy_door": DOOR, "heavy_impl": "import torch\nimport pydantic\nT = Options = 1"}
    site.add("heavy-peg", {("adapter", "heavy"): "heavy_door:S", ("command", "heavy"): "heavy_door:S"}, modules)
    return site


def test_importing_pegboard_imports_next_to_nothing() -> None:
    assert not modules("import pegboard") & {*HEAVY, "click", "stevedore", "pluggy", "importlib_metadata", "asyncio"}


@pytest.mark.parametrize(
    "args", [["--help"], ["plugins", "--help"], ["plugins", "list"], ["plugins", "list", "--json"]]
)
def test_metadata_are_enough(heavy, args: list[str]) -> None:
    loaded = modules(RUN.format(args=args))
    assert not loaded & {*HEAVY, "stevedore", "pluggy"}
    assert heavy.imported() == []


def test_metadata_are_enough_for_what_is_installed_here(monkeypatch) -> None:
    monkeypatch.delenv("PEGBOARD_PLUGINS", raising=False)
    loaded = modules(RUN.format(args=["plugins", "list"]))
    assert not loaded & {*HEAVY, "stevedore", "pluggy"}
    assert not [name for name in loaded if name.startswith("pegboard_")]


def test_show_opens_front_doors_alone(heavy) -> None:
    loaded = modules(RUN.format(args=["plugins", "show", "heavy"]))
    assert not loaded & {"torch", "pydantic", "omegaconf", "numpy"}
    assert set(heavy.imported()) == {"heavy_door"}


def test_help_of_our_own_commands_imports_nothing_heavy() -> None:
    for command in ("run", "config", "doctor", "convert"):
        assert not modules(RUN.format(args=[command, "--help"])) & {"torch", "omegaconf", "pydantic"}


def test_configs_are_read_without_torch(bakery) -> None:
    code = RUN.format(args=["config", "validate", "bake", "model=m", "output=o"])
    assert not modules(code) & {"torch", "omegaconf"}


@pytest.mark.parametrize("module", ["pegboard.plugins.load", "pegboard.plugins.resolve", "pegboard.errors"])
def test_rooms_that_front_doors_and_workers_start_with(module: str) -> None:
    assert not modules(f"import {module}") & {*HEAVY, "click", "pluggy"}


def test_front_doors_need_the_standard_library_alone() -> None:
    loaded = modules("import pegboard.plugins.spec")
    assert not loaded & {*HEAVY, "click", "stevedore", "pluggy"}
