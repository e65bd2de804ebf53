"""What all suites share: the front door, options, flags, and the guard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import pytest

from pegboard.plugins.doors import DoorError, import_object, load_schema, open_door, run_probe
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import PluginRecord, scan
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard_sdk.conformance.guard import problems, standard

_LOADED = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
_HEAVY = {"torch", "numpy", "pydantic", "omegaconf", "transformers", "triton"}


@standard
class PluginSuite:
    """The front door of a plugin of any kind. Subclass the suite of your kind, or this one where there is none.

    spec: the front door, as the entry point names it.
    options: options that every instance is made with, as a config would give them.
    installed: whether an installed distribution offers the plugin.
    overrides: standard test -> why this class deletes or replaces it. A flag is the better way where there is one.
    """

    spec: ClassVar[PluginSpec]
    options: ClassVar[Mapping[str, Any]] = {}
    installed: ClassVar[bool] = True
    overrides: ClassVar[Mapping[str, str]] = {}

    kind: ClassVar[str | None] = None
    """The kind that a suite is for; set by the suite."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrong = [] if cls.__module__.startswith("pegboard_sdk.") else problems(cls)
        if wrong:
            raise TypeError(f"{cls.__name__} changes its conformance suite: " + "; ".join(wrong))

    def create(self, **options: Any) -> Any:
        """Return an instance made as a run makes it, from `self.options` and these."""
        registry = Registry.of({(self.spec.kind, "tested"): self.spec})
        return registry.create(self.spec.kind, {"use": "tested", **self.options, **options})

    def needs(self, flag: str, why: str = "") -> None:
        """Skip the test when the class sets `flag` to False."""
        if not getattr(self, flag):
            self.skip(f"{flag} is False" + (f": {why}" if why else ""))

    def skip(self, reason: str) -> NoReturn:
        """Skip the test."""
        pytest.skip(f"{type(self).__name__}: {reason}")

    def test_standard_tests_are_whole(self) -> None:
        """No standard test was deleted or replaced after the class was defined."""
        assert problems(type(self)) == []

    def test_front_door_says_what_it_is(self) -> None:
        """Kind, interface version, and capabilities that are JSON."""
        assert isinstance(self.spec, PluginSpec)
        assert self.kind in (None, self.spec.kind), f"the suite is for plugins of kind {self.kind}"
        assert self.spec.interface == GROUPS[self.spec.kind].version
        assert json.loads(json.dumps(self.spec.capabilities)) is not None

    def test_target_implements_the_interface(self) -> None:
        """The implementation can be imported and is all that the interface asks for.

        That is a class of it with nothing left abstract; where the interface is a Protocol, whatever has its methods.
        """
        target = import_object(self.spec.target)
        interface = import_object(GROUPS[self.spec.kind].interface)
        if getattr(interface, "_is_protocol", False):
            assert [name for name in vars(interface) if not name.startswith("_") and not hasattr(target, name)] == []
            return
        assert issubclass(target, interface)
        assert sorted(getattr(target, "__abstractmethods__", ())) == []

    def test_schema_is_strict(self) -> None:
        """The options are a pydantic model that refuses unknown keys."""
        schema = load_schema(self.spec, "the plugin")
        if schema is None:
            assert not self.options, "options are given, but the front door names no schema"
            return
        assert schema.model_config.get("extra") == "forbid", 'set model_config = ConfigDict(extra="forbid")'

    def test_probe_answers(self) -> None:
        """The probe returns a Probe with a reason; what is not there is not usable."""
        found = run_probe(self.spec)
        assert found.reason.strip() and "\n" not in found.reason
        assert found.present or not found.usable

    def test_is_discovered(self) -> None:
        """An installed distribution offers this very front door, which imports nothing heavy."""
        self.needs("installed", "the plugin is no installed distribution")
        offered = [r for r in scan().of_kind(self.spec.kind) if _opens(r) == self.spec]
        assert offered, f"no entry point of the group pegboard.{self.spec.kind} names this front door: install it again"
        assert [record.reason for record in offered if record.status not in ("ok", "blocked")] == []
        module = offered[0].value.partition(":")[0]
        command = [sys.executable, "-c", _LOADED, module]
        loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert not _HEAVY & set(json.loads(loaded.splitlines()[-1])), f"{module} may import the standard library alone"


def _opens(record: PluginRecord) -> PluginSpec | None:
    try:
        return open_door(record)
    except DoorError:
        return None  # somebody else's: `peg plugins check` tells
