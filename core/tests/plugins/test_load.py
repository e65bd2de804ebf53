"""Asked for by name and failing = stop, with cause and fix. Not asked for and failing = one warning line."""

from __future__ import annotations

import logging

import pytest

from pegboard.errors import ConfigError, PluginError
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.load import Registry, split_choice
from pegboard.plugins.spec import PluginSpec

SPEC = "from pegboard.plugins.spec import PluginSpec\n"
ADAPTER = SPEC + "S = PluginSpec(kind='adapter', target='{0}.impl:Thing', **{1!r})"


def add(site, dist: str, name: str = "thing", impl: str = "class Thing: ...", **spec: object) -> None:
    """Install an adapter plugin with a front door and an implementation."""
    package = dist.replace("-", "_")
    modules = {f"{package}.plugin": ADAPTER.format(package, spec), f"{package}.impl": impl}
    site.add(dist, {("adapter", name): f"{package}.plugin:S"}, modules)


def test_layers_are_imported_one_by_one(site) -> None:
    add(site, "acme-peg")
    registry = Registry.discover()
    assert registry.record("adapter", "thing").status == "ok"
    assert site.imported() == []
    assert registry.spec("adapter", "thing").target == "acme_peg.impl:Thing"
    assert site.imported() == ["acme_peg.plugin"]
    assert registry.load("adapter", "thing").__name__ == "Thing"
    assert site.imported() == ["acme_peg.plugin", "acme_peg.impl"]


def test_only_the_plugin_that_is_named_is_imported(site) -> None:
    add(site, "acme-peg", "thing")
    add(site, "other-peg", "other", impl="1/0")
    Registry.discover().create("adapter", "thing")
    assert not [name for name in site.imported() if name.startswith("other")]


@pytest.mark.parametrize("name", ["thing", "acme-peg:thing"])
def test_blocked_stops_before_any_import(site, name: str) -> None:
    add(site, "acme-peg")
    registry = Registry.discover(disabled=["acme-peg"])
    with pytest.raises(PluginError, match="is blocked: disabled as 'acme-peg'") as caught:
        registry.create("adapter", name)
    assert "PEGBOARD_DISABLE_PLUGINS" in (caught.value.fix or "")
    assert registry.candidates("adapter") == []
    assert site.imported() == []


def test_blocks_of_a_config_act_on_the_same_scan(site, caplog) -> None:
    add(site, "acme-peg")
    registry = Registry.discover()
    assert registry.without([]) is registry
    for _ in range(2):
        narrowed = registry.without(["thing", "typo"])
    with pytest.raises(PluginError, match="is blocked"):
        narrowed.spec("adapter", "thing")
    assert registry.record("adapter", "thing").status == "ok"
    assert site.imported() == []
    assert [record.message for record in caplog.records if "typo" in record.message] == [
        "PEGBOARD_DISABLE_PLUGINS or plugins.disabled names 'typo', which is no installed plugin"
    ]


def test_a_conflict_stops_only_who_asks_for_the_short_name(site) -> None:
    add(site, "one-peg")
    add(site, "mid-peg", "other")
    add(site, "two-peg")
    registry = Registry.discover()
    with pytest.raises(PluginError) as caught:
        registry.load("adapter", "thing")
    assert "one-peg 1.0 and two-peg 1.0" in caught.value.message
    assert "one-peg:thing or two-peg:thing" in (caught.value.fix or "")
    assert site.imported() == []
    assert registry.load("adapter", "two-peg:thing").__module__ == "two_peg.impl"
    assert registry.load("adapter", "other").__module__ == "mid_peg.impl"
    assert not [name for name in site.imported() if name.startswith("one")]


def test_a_rival_that_cannot_be_used_is_none(site) -> None:
    add(site, "one-peg")
    add(site, "two-peg")
    site.add("one-peg", {("adapter", "thing"): "one_peg.plugin:S"}, requires=["pegboard>=99"])
    assert Registry.discover().load("adapter", "thing").__module__ == "two_peg.impl"


def test_the_second_gate_is_the_interface_version(site) -> None:
    newer = GROUPS["adapter"].version + 1
    add(site, "acme-peg", interface=newer)
    add(site, "old-peg", "old", interface=0)
    registry = Registry.discover()
    with pytest.raises(PluginError, match=f"follows version {newer} of the adapter interface") as caught:
        registry.load("adapter", "thing")
    assert caught.value.fix == "pip install --upgrade pegboard acme-peg"
    with pytest.raises(PluginError, match="follows version 0") as caught:
        registry.load("adapter", "old")
    assert caught.value.fix == "pip install --upgrade pegboard old-peg"
    assert site.imported() == ["acme_peg.plugin", "old_peg.plugin"]
    states = {r.name: r.status for r in registry.records("adapter") if r.status != "blocked"}
    assert states == {"thing": "incompatible", "old": "incompatible"}


def test_the_first_gate_stops_before_any_import(site) -> None:
    site.add("acme-peg", {("adapter", "thing"): "acme.plugin:S"}, {"acme.plugin": "1/0"}, requires=["pegboard>=99"])
    with pytest.raises(PluginError, match="is incompatible: acme-peg needs pegboard>=99") as caught:
        Registry.discover().spec("adapter", "thing")
    assert caught.value.fix == "pip install --upgrade pegboard acme-peg"
    assert site.imported() == []


@pytest.mark.parametrize(
    ("door", "cause"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("T = 1", "has no attribute 'S'"),
        ("S = 1", "is a int, expected a PluginSpec"),
        (SPEC + "S = PluginSpec(kind='logger', target='m:T')", "says that it is of kind 'logger'"),
        ("class Odd(Exception):\n    def __str__(self): return 'odd'\nraise Odd", "Odd: odd"),
    ],
)
def test_a_front_door_that_fails_has_cause_and_fix(site, door: str, cause: str) -> None:
    site.add("acme-peg", {("adapter", "thing"): "acme.plugin:S"}, {"acme.plugin": door})
    registry = Registry.discover()
    with pytest.raises(PluginError) as caught:
        registry.create("adapter", "thing")
    assert "adapter 'thing' of acme-peg" in caught.value.message
    assert cause in caught.value.message
    assert "pip install --upgrade --force-reinstall acme-peg" in (caught.value.fix or "")
    (record,) = [r for r in registry.records("adapter") if r.name == "thing"]
    assert record.status == "failed"
    assert cause in record.reason


@pytest.mark.parametrize(
    ("impl", "cause"),
    [
        ("1/0", "ZeroDivisionError"),
        ("raise SystemExit", "ends the process"),
        ("class Thnig: ...", "has no 'Thing' (did you mean 'Thnig'?)"),
    ],
)
def test_an_implementation_that_fails_has_cause_and_fix(site, impl: str, cause: str) -> None:
    add(site, "acme-peg", impl=impl)
    registry = Registry.discover()
    with pytest.raises(PluginError) as caught:
        registry.load("adapter", "thing")
    assert cause in caught.value.message
    assert "peg plugins check thing" in (caught.value.fix or "")
    assert [r.status for r in registry.records("adapter") if r.name == "thing"] == ["failed"]
    with pytest.raises(PluginError):
        registry.create("adapter", "thing")


def test_who_was_not_asked_for_is_passed_by_with_one_line(site, caplog) -> None:
    add(site, "acme-peg", priority=1)
    site.add("bad-peg", {("adapter", "bad"): "bad_peg:S"}, {"bad_peg": "1/0"})
    add(site, "best-peg", "best", priority=5)
    registry = Registry.discover()
    for _ in range(3):
        assert [record.name for record, _ in registry.candidates("adapter")] == ["best", "thing"]
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "passing by adapter bad-peg:bad" in lines[0].message
    assert "ZeroDivisionError" in lines[0].message
    assert "\n" not in lines[0].message


def test_unknown_names_are_guessed(site) -> None:
    add(site, "acme-peg", "thingamajig")
    with pytest.raises(PluginError) as caught:
        Registry.discover().create("adapter", "thingamajik")
    assert "did you mean 'thingamajig'?" in caught.value.message
    assert "pip install" not in (caught.value.fix or "")


def test_unknown_kinds_are_guessed() -> None:
    with pytest.raises(PluginError, match=r"no plugin kind 'adaptor' .did you mean 'adapter'"):
        Registry.of({}).records("adaptor")


def test_known_plugins_come_with_their_pip_command() -> None:
    with pytest.raises(PluginError, match="no installed plugin offers optimizer 'adamw'; installed: none") as caught:
        Registry.of({}).create("optimizer", "adamw")
    assert caught.value.fix == "pip install pegboard-trainer"
    with pytest.raises(PluginError, match="did you mean 'adamw'") as caught:
        Registry.of({}).create("optimizer", "adamv")
    assert "pip install" not in (caught.value.fix or "")


def test_a_re_installation_shows_in_the_next_registry(site) -> None:
    """A front door is opened from our index, never from stevedore's cache."""
    add(site, "acme-peg", "thing")
    assert Registry.discover().spec("adapter", "thing").priority == 0
    site.module("acme_peg.other", ADAPTER.format("acme_peg", {"priority": 7}))
    site.add("acme-peg", {("adapter", "thing"): "acme_peg.other:S"})
    assert Registry.discover().spec("adapter", "thing").priority == 7


def test_capabilities_are_matched_before_any_implementation_is_imported(site) -> None:
    add(site, "acme-peg", "thing", capabilities={"suffixes": [".a", ".b"], "ids": True})
    add(site, "best-peg", "best", capabilities={"suffixes": [".b"]}, priority=2)
    add(site, "solo-peg", "solo", capabilities={"suffixes": ".c"})
    registry = Registry.discover()
    assert registry.match("adapter", "suffixes", ".b") == ["best", "thing"]
    assert registry.match("adapter", "suffixes", ".c") == ["solo"]
    assert registry.match("adapter", "suffixes", ".d") == []
    assert registry.match("adapter", "ids", "true") == ["thing"]
    assert not [name for name in site.imported() if name.endswith("impl")]


def test_a_registry_of_given_doors_scans_nothing(site) -> None:
    add(site, "acme-peg")
    registry = Registry.of({("adapter", "mine"): (PluginSpec(kind="adapter", target="collections:OrderedDict"), "d")})
    assert [record.identity for record in registry.records()] == ["d:mine"]
    assert registry.create("adapter", "mine") == {}
    assert registry.create("adapter", "d:mine") == {}


@pytest.mark.parametrize(
    ("choice", "message"),
    [(3, "adapter is 3"), ({"rank": 1}, "has no `use`"), ({"use": ""}, "has no `use`"), ({"use": 4}, "has no `use`")],
)
def test_a_choice_must_name_something(choice: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_choice("adapter", choice)  # type: ignore[arg-type]
