"""Automatic choices: every candidate with its reason, and never a worse one without a word."""

from __future__ import annotations

import logging

import pytest

from pegboard.errors import PluginError
from pegboard.plugins.load import Registry

DOOR = """
from pegboard.plugins.spec import PluginSpec, Probe
def probe():
    {probe}
S = PluginSpec(kind="platform", target="collections:OrderedDict", probe="{module}:probe", priority={priority},
               capabilities={capabilities!r})
"""
ABSENT = "return Probe(False, False, 'no device files')"
BROKEN = "return Probe(True, False, 'the driver is too old')"
THERE = "return Probe(True, True, '2 devices')"


def add(site, name: str, probe: str, priority: int = 0, *, dist: str = "", host: bool = False) -> None:
    """Install a platform plugin whose probe runs one line."""
    dist = dist or f"{name}-peg"
    module = f"door_{dist.replace('-', '_')}"
    source = DOOR.format(probe=probe, module=module, priority=priority, capabilities={"host": True} if host else {})
    site.add(dist, {("platform", name): f"{module}:S"}, {module: source})


def test_the_best_that_is_present_is_taken(site, caplog) -> None:
    caplog.set_level(logging.INFO, "pegboard")
    add(site, "low", THERE, 1)
    add(site, "high", THERE, 2)
    add(site, "none", ABSENT, 3)
    choice = Registry.discover().auto("platform")
    assert choice.name == "high"
    mine = {c.name: (c.verdict, c.reason) for c in choice.candidates if c.verdict != "blocked"}
    assert mine == {
        "none": ("absent", "no device files"),
        "high": ("chosen", "2 devices"),
        "low": ("available", "2 devices"),
    }
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(
        "platform: high chosen (2 devices); none absent (no device files); low available (2 devices)"
    )


def test_the_host_is_taken_when_nothing_else_is_present(site, caplog) -> None:
    caplog.set_level(logging.INFO, "pegboard")
    add(site, "host", "return Probe(True, True, '4 cores')", 99, host=True)
    add(site, "fast", ABSENT)
    registry = Registry.discover()
    assert [registry.auto("platform").name for _ in range(3)] == ["host"] * 3
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("platform: host chosen (4 cores); fast absent (no device files)")


def test_the_host_gives_way_to_anything_present(site) -> None:
    add(site, "host", THERE, 99, host=True)
    add(site, "fast", THERE, -5)
    assert Registry.discover().auto("platform").name == "fast"


def test_present_but_broken_stops(site) -> None:
    add(site, "host", THERE, host=True)
    add(site, "fast", BROKEN)
    with pytest.raises(PluginError, match="'fast' is present but not usable: the driver is too old") as caught:
        Registry.discover().auto("platform")
    assert "PEGBOARD_DISABLE_PLUGINS=fast-peg" in (caught.value.fix or "")
    assert Registry.discover(disabled=["fast-peg"]).auto("platform").name == "host"


def test_a_broken_one_below_the_choice_does_not_matter(site) -> None:
    add(site, "best", THERE, 2)
    add(site, "fast", BROKEN, 1)
    choice = Registry.discover().auto("platform")
    assert choice.name == "best"
    assert [c.verdict for c in choice.candidates if c.name == "fast"] == ["broken"]


@pytest.mark.parametrize("probe", ["raise OSError('odd')", "raise SystemExit(1)", "return True"])
def test_a_probe_that_fails_is_one_warning_line(site, caplog, probe: str) -> None:
    add(site, "host", THERE, host=True)
    add(site, "fast", probe)
    choice = Registry.discover().auto("platform")
    assert choice.name == "host"
    assert [c.verdict for c in choice.candidates if c.name == "fast"] == ["failed"]
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "passing by platform fast-peg:fast" in line


def test_every_candidate_is_told_whatever_its_state(site) -> None:
    add(site, "host", THERE, host=True)
    site.add("bad-peg", {("platform", "bad"): "bad_door:S"}, {"bad_door": "1/0"})
    site.add("old-peg", {("platform", "old"): "old_door:S"}, {"old_door": ""}, requires=["pegboard<0"])
    add(site, "off", THERE)
    line = Registry.discover(disabled=["off"]).auto("platform").line
    assert "bad failed (" in line
    assert "ZeroDivisionError" in line
    assert "old incompatible (old-peg needs pegboard<0" in line
    assert "off blocked (disabled as 'off'" in line


def test_two_rivals_that_are_present_stop_the_choice(site) -> None:
    """Neither is taken by chance, and the host does not stand in for them."""
    add(site, "host", THERE, host=True)
    add(site, "fast", THERE, dist="one-peg")
    add(site, "fast", THERE, dist="two-peg")
    with pytest.raises(PluginError, match=r"offered by one-peg 1\.0 and two-peg 1\.0") as caught:
        Registry.discover().auto("platform")
    assert "PEGBOARD_DISABLE_PLUGINS=one-peg" in (caught.value.fix or "")
    assert "one-peg:fast" in (caught.value.fix or "")
    assert Registry.discover(disabled=["one-peg"]).auto("platform").name == "fast"


def test_two_rivals_that_are_absent_do_not_matter(site) -> None:
    add(site, "host", THERE, host=True)
    add(site, "fast", ABSENT, dist="one-peg")
    add(site, "fast", ABSENT, dist="two-peg")
    assert Registry.discover().auto("platform").name == "host"


def test_nothing_usable_is_an_error_that_tells_all(site) -> None:
    add(site, "fast", ABSENT)
    with pytest.raises(PluginError, match=r"no platform plugin can be used .*fast: absent, no device files") as caught:
        Registry.discover().auto("platform")
    assert "peg plugins list --kind platform" in (caught.value.fix or "")
    with pytest.raises(PluginError, match="none is installed"):
        Registry.of({}).auto("platform")


def test_nothing_of_an_implementation_is_imported(site) -> None:
    add(site, "fast", THERE)
    Registry.discover().auto("platform")
    assert site.imported() == ["door_fast_peg"]
