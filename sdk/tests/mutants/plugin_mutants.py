"""Front doors that are broken, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pegboard_acme.plugin import SPEC
from pydantic import BaseModel

from pegboard.interfaces.logger import Logger
from pegboard.plugins.spec import PluginSpec, Probe
from pegboard_sdk.conformance import LoggerSuite, PluginSuite


class Lenient(BaseModel):
    file: str = "metrics.csv"


class Abstract(Logger):
    def start(self, run):
        pass


def no_reason() -> Probe:
    return Probe(True, True, "")


def absent_but_usable() -> Probe:
    return Probe(False, True, "not there")


def broken(test: str, spec: PluginSpec = SPEC, suite: type[PluginSuite] = LoggerSuite) -> type[PluginSuite]:
    """Return a test class that `test` is to catch."""
    return type("Broken", (suite,), {"spec": spec, "caught_by": (test,), "read": lambda self, folder: []})


DOOR = "test_front_door_says_what_it_is"
TestOtherKind = broken(DOOR, replace(SPEC, kind="platform"))
TestOtherVersion = broken(DOOR, replace(SPEC, interface=99))
TestNoJson = broken(DOOR, replace(SPEC, capabilities={"words": {"a"}}))
TestAbstract = broken("test_target_implements_the_interface", replace(SPEC, target=f"{__name__}:Abstract"))
TestStranger = broken("test_target_implements_the_interface", replace(SPEC, target=f"{__name__}:Lenient"))
COMMAND = PluginSpec(kind="command", target=f"{__name__}:Lenient")
TestNoCommand = broken("test_target_implements_the_interface", COMMAND, PluginSuite)
TestLenient = broken("test_schema_is_strict", replace(SPEC, schema=f"{__name__}:Lenient"))
TestNoReason = broken("test_probe_answers", replace(SPEC, probe=f"{__name__}:no_reason"))
TestAbsentButUsable = broken("test_probe_answers", replace(SPEC, probe=f"{__name__}:absent_but_usable"))
TestNotInstalled = broken("test_is_discovered")


class TestReplacedLater(LoggerSuite):
    spec = SPEC
    caught_by: ClassVar[tuple[str, ...]] = ("test_standard_tests_are_whole",)


TestReplacedLater.test_run = lambda self: None  # type: ignore[method-assign, assignment]


class TestDeletedLater(LoggerSuite):
    spec = SPEC
    caught_by: ClassVar[tuple[str, ...]] = ("test_standard_tests_are_whole",)


TestDeletedLater.test_run = None  # type: ignore[method-assign, assignment]
