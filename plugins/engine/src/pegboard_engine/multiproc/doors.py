"""The plugins that a worker may need, by value: it scans nothing and sees what its parent saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec

if TYPE_CHECKING:
    from pegboard.plugins.index import PluginRecord

_OPEN = ("model", "format", "adapter", "logits_processor")
"""Kinds that are chosen in the worker, by what a file holds or a request asks for."""


def pack_doors(registry: Registry, chosen: Mapping[str, Any]) -> list[Any]:
    """Return the front doors of what was chosen, and of every usable plugin of the kinds that a worker chooses from.

    chosen: kind -> name, or mapping with "use"; None, and a user's own class, have no front door.
    """
    found: dict[tuple[str, str], Any] = {}
    for record, spec in _doors(registry, chosen):
        values = asdict(spec)
        values["capabilities"] = {key: _listed(value) for key, value in spec.capabilities.items()}
        names = PluginSpec.__dataclass_fields__
        door = {"name": record.name, "dist": record.dist, "spec": {key: values[key] for key in names}}
        found.setdefault((record.kind, record.name), door)
    return list(found.values())


def unpack_doors(doors: list[Any]) -> Registry:
    """Return a registry of what was packed."""
    specs = {}
    for door in doors:
        spec = PluginSpec(**door["spec"])
        specs[spec.kind, door["name"]] = spec, door["dist"]
    return Registry.of(specs)


def _doors(registry: Registry, chosen: Mapping[str, Any]) -> Iterator[tuple[PluginRecord, PluginSpec]]:
    for kind, choice in chosen.items():
        name = choice["use"] if isinstance(choice, Mapping) else choice
        if name is not None and not registry.is_custom(kind, name):
            yield registry.record(kind, name), registry.spec(kind, name)
    for kind in _OPEN:
        yield from registry.candidates(kind)


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else value
