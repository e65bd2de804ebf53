"""A choice as a JSON value: a worker process creates exactly it, and scans nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import ConfigError, DeviceError, PegboardError, PluginError
from pegboard.plugins.load import Registry
from pegboard.plugins.resolve import ResolvedChoice

DOOR = """
from pegboard.plugins.spec import PluginSpec
S = PluginSpec(kind="adapter", target="acme.impl:Thing", schema="acme.options:Options")
PLAIN = PluginSpec(kind="adapter", target="acme.impl:Plain")
"""
OPTIONS = """
from pydantic import BaseModel, ConfigDict
class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = 8
    names: list[str] = []
"""
IMPL = """
from abc import ABC, abstractmethod
class Thing:
    def __init__(self, options):
        self.options = options
class Plain: ...
"""
CUSTOM = """
from abc import ABC, abstractmethod
from acme.options import Options
class Mine:
    def __init__(self, rank, alpha=2):
        self.rank, self.alpha = rank, alpha
class Typed:
    schema = Options
    def __init__(self, options):
        self.options = options
class Half(ABC):
    @abstractmethod
    def needed(self): ...
value = 3
"""
WORKER = """
import importlib.metadata, json, sys
import pydantic
class ReadsPydanticsOwnPlugins(pydantic.BaseModel): ...
def refuse(*args, **kwargs):
    raise AssertionError("a worker scans")
importlib.metadata.distributions = importlib.metadata.entry_points = refuse
from pegboard.plugins.resolve import ResolvedChoice
thing = ResolvedChoice.from_json(json.loads(sys.argv[1])).create()
print(type(thing).__module__, thing.options.rank, thing.options.names)
"""


@pytest.fixture
def acme(site):
    site.add(
        "acme-peg",
        {("adapter", "thing"): "acme.door:S", ("adapter", "plain"): "acme.door:PLAIN"},
        {"acme.door": DOOR, "acme.options": OPTIONS, "acme.impl": IMPL, "acme_custom": CUSTOM},
        version="1.2",
    )
    return site


def test_resolving_imports_no_implementation(acme) -> None:
    choice = Registry.discover().resolve("adapter", {"use": "thing", "rank": 2})
    assert choice == ResolvedChoice(
        "adapter", "thing", "acme-peg", "1.2", "acme.impl:Thing", 1, "acme.options:Options", {"rank": 2}
    )
    assert acme.imported() == ["acme.door"]


def test_a_worker_gets_exactly_the_choice_and_scans_nothing(acme, monkeypatch) -> None:
    choice = Registry.discover().resolve("adapter", {"use": "thing", "rank": 2, "names": ["a=b", "ü"]})
    text = json.dumps(choice.to_json())
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "acme-peg")
    done = subprocess.run([sys.executable, "-c", WORKER, text], capture_output=True, encoding="utf-8")
    assert done.stdout == "acme.impl 2 ['a=b', 'ü']\n", done.stderr


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.text(), JSON, max_size=3), st.none() | st.text())
def test_json_and_back(options: dict[str, Any], schema: str | None) -> None:
    choice = ResolvedChoice("adapter", "n", "d", "1", "m:T", 1, schema, options)
    assert ResolvedChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice


def test_another_interface_version_is_refused() -> None:
    value = ResolvedChoice("adapter", "n", "d", "1", "m:T", 2).to_json()
    with pytest.raises(PluginError, match="adapter 'n' of d was resolved for version 2"):
        ResolvedChoice.from_json(value)


@pytest.mark.parametrize("change", [{"kind": "telepathy"}, {"more": 1}])
def test_what_is_no_choice_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="no resolved choice"):
        ResolvedChoice.from_json({**ResolvedChoice("adapter", "n", "d", "1", "m:T", 1).to_json(), **change})
    with pytest.raises(PluginError, match="no resolved choice"):
        ResolvedChoice.from_json({"kind": "adapter"})


def test_another_version_of_the_distribution_is_refused(acme) -> None:
    choice = Registry.discover().resolve("adapter", "plain")
    (acme.folder / "acme_peg-1.2.dist-info" / "METADATA").write_text("Name: acme-peg\nVersion: 1.3\n")
    with pytest.raises(PluginError, match=r"resolved as version 1\.2, here is 1\.3") as caught:
        choice.create()
    assert caught.value.fix == "pip install acme-peg==1.2"


def test_options_are_validated_where_the_thing_is_created(acme) -> None:
    registry = Registry.discover()
    thing = registry.create("adapter", {"use": "thing", "rank": "4"})
    assert (thing.options.rank, thing.options.names) == (4, [])
    with pytest.raises(ConfigError) as caught:
        registry.create("adapter", {"use": "thing", "rnak": 4, "names": 3})
    assert "adapter 'thing' of acme-peg: 2 problems" in caught.value.message
    assert "rnak: unknown key (did you mean 'rank'?)" in caught.value.message
    assert "names = 3: expected a valid list" in caught.value.message


def test_a_plugin_without_schema_takes_no_options(acme) -> None:
    registry = Registry.discover()
    assert type(registry.create("adapter", "plain")).__name__ == "Plain"
    with pytest.raises(ConfigError, match="takes no options, given: rank"):
        registry.create("adapter", {"use": "plain", "rank": 1})


def test_a_schema_that_is_none_is_the_plugins_fault(site) -> None:
    door = "from pegboard.plugins.spec import PluginSpec\n"
    for number, schema in enumerate(("no_such:Options", "collections:OrderedDict")):
        source = f"{door}S = PluginSpec(kind='adapter', target='m:T', schema={schema!r})"
        site.add(f"peg{number}", {("adapter", f"a{number}"): f"door{number}:S"}, {f"door{number}": source})
    registry = Registry.discover()
    with pytest.raises(PluginError, match="schema no_such:Options cannot be imported: ModuleNotFoundError"):
        registry.schema("adapter", "a0")
    with pytest.raises(PluginError, match="is no pydantic model"):
        registry.schema("adapter", "a1")


def test_a_users_own_class(acme) -> None:
    registry = Registry.discover()
    mine = registry.create("adapter", {"use": "acme_custom:Mine", "rank": 3})
    assert (mine.rank, mine.alpha) == (3, 2)
    typed = registry.create("adapter", {"use": "acme_custom:Typed", "names": ["x"]})
    assert (typed.options.rank, typed.options.names) == (8, ["x"])
    again = ResolvedChoice.from_json(registry.resolve("adapter", {"use": "acme_custom:Mine", "rank": 3}).to_json())
    assert again.create().rank == 3


def test_a_users_own_class_is_found_in_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_module_of_a_user.py").write_text("class Mine: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    made = Registry.of({}).create("adapter", "own_module_of_a_user:Mine")
    assert type(made).__name__ == "Mine"
    del sys.modules["own_module_of_a_user"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"use": "acme_custom:Mine"}, "missing a required argument: 'rank'"),
        ({"use": "acme_custom:Mine", "rank": 1, "aplha": 2}, "did you mean 'alpha'"),
        ({"use": "acme_custom:Typed", "rnak": 2}, "did you mean 'rank'"),
        ({"use": "acme_custom:Mien"}, "did you mean 'Mine'"),
        ({"use": "no_such_module:Mine"}, "No module named 'no_such_module'"),
        ({"use": "acme_custom:"}, "not of the form module:attribute"),
        ({"use": "acme_custom:value"}, "is a int, expected a class"),
    ],
)
def test_mistakes_with_a_users_own_class(acme, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Registry.discover().create("adapter", choice)
    assert message in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            "OSError('libfast.so is missing')",
            PluginError,
            "adapter 'thing' of acme-peg cannot be created: OSError: libfast",
        ),
        ("DeviceError('no device', fix='buy one')", DeviceError, "no device"),
    ],
)
def test_a_plugin_that_cannot_be_created_has_its_cause(
    acme, raised: str, expected: type[PegboardError], message: str
) -> None:
    source = f"from pegboard.errors import DeviceError\nclass Thing:\n    def __init__(self, options): raise {raised}"
    acme.module("acme.impl", source)
    with pytest.raises(expected) as caught:
        Registry.discover().create("adapter", "thing")
    assert str(caught.value).startswith(message)
    assert caught.value.fix


def test_a_class_with_methods_missing_is_refused(acme) -> None:
    with pytest.raises(PluginError, match="it lacks needed"):
        Registry.discover().create("adapter", "acme_custom:Half")
