"""Opening front doors with stevedore, and importing what they point to."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from stevedore.driver import DriverManager
from stevedore.extension import error_on_conflict

from pegboard import __version__
from pegboard.errors import ConfigError, PluginError, nearest
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import PluginRecord, Status
from pegboard.plugins.spec import PluginSpec, Probe

if TYPE_CHECKING:
    from pydantic import BaseModel


class DoorError(Exception):
    """A front door cannot be used. status: "failed", or "incompatible" for another version of its kind's interface."""

    def __init__(self, reason: str, status: Status = "failed") -> None:
        super().__init__(reason)
        self.status = status


class FrontDoor(DriverManager[PluginSpec]):
    """A stevedore driver that finds nothing by itself: it is given one record of our index.

    stevedore's own discovery caches across installs, forgets the distribution, and resolves only adjacent duplicates.
    """

    def __init__(self, record: PluginRecord) -> None:
        self._record = record
        super().__init__(GROUPS[record.kind].entry_point_group, record.name, conflict_resolver=error_on_conflict)

    def list_entry_points(self) -> list[EntryPoint]:
        """Return the one entry point."""
        return [EntryPoint(self._record.name, self._record.value, self.namespace)]


def open_door(record: PluginRecord) -> PluginSpec:
    """Import a front door and check it. Raises DoorError."""
    try:
        spec: Any = FrontDoor(record).extensions[0].plugin
    except (Exception, SystemExit) as error:
        raise DoorError(f"its front door {record.value} fails: {type(error).__name__}: {error}") from error
    if not isinstance(spec, PluginSpec):
        raise DoorError(f"its front door {record.value} is a {type(spec).__name__}, expected a PluginSpec")
    if spec.kind != record.kind:
        raise DoorError(f"its front door says that it is of kind {spec.kind!r}")
    wanted = GROUPS[record.kind].version
    if spec.interface != wanted:
        raise DoorError(
            f"it follows version {spec.interface} of the {record.kind} interface, "
            f"pegboard {__version__} has version {wanted}",
            "incompatible",
        )
    return spec


def import_object(path: str) -> Any:
    """Import "module:attribute".

    The attribute may be dotted. Raises whatever the import raises; ImportError for a missing attribute.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise ImportError(f"{path!r} is not of the form module:attribute")
    try:
        found: Any = importlib.import_module(module_name)
    except SystemExit as error:
        raise ImportError(f"importing {module_name} ends the process (status {error.code})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ImportError(f"{module_name} has no {attribute!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


def import_custom(kind: str, path: str) -> Any:
    """Import a user's own "module:Class", also from the working directory. Raises ConfigError with the cause."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return import_object(path)
    except Exception as error:
        raise ConfigError(
            f"{kind}: use {path!r} cannot be imported: {type(error).__name__}: {error}",
            fix="check module and class; modules are found in the environment and in the working directory",
        ) from error


def load_schema(spec: PluginSpec, what: str) -> type[BaseModel] | None:
    """Import the options model of a front door. Raises PluginError when it is not there or not a pydantic model."""
    if spec.schema is None:
        return None
    from pydantic import BaseModel

    fix = "upgrade or re-install the plugin; if that does not help, tell its authors"
    try:
        schema = import_object(spec.schema)
    except Exception as error:
        raise PluginError(
            f"{what}: its schema {spec.schema} cannot be imported: {type(error).__name__}: {error}", fix=fix
        ) from error
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        raise PluginError(f"{what}: its schema {spec.schema} is no pydantic model", fix=fix)
    return schema


def run_probe(spec: PluginSpec) -> Probe:
    """Ask a plugin whether its thing is on this machine.

    Raises whatever the probe raises; TypeError when it returns no Probe.
    """
    if spec.probe is None:
        return Probe(True, True, "always available")
    probe = import_object(spec.probe)()
    if not isinstance(probe, Probe):
        raise TypeError(f"{spec.probe} returned {type(probe).__name__}, expected a Probe")
    return probe
