from __future__ import annotations

import json

import pytest

from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard_engine.multiproc.doors import pack_doors, unpack_doors
from pegboard_engine.multiproc.values import pack, unpack

CHOSEN = {"platform": "acme", "attention": "acme", "quantizer": {"use": "four", "group": 32}}


def door(kind: str, **more: object) -> PluginSpec:
    return PluginSpec(kind=kind, target=f"acme.{kind}:Thing", **more)  # type: ignore[arg-type]


@pytest.fixture
def registry() -> Registry:
    return Registry.of(
        {
            ("platform", "acme"): (door("platform", probe="acme.probe:probe"), "acme-gpu"),
            ("platform", "other"): door("platform"),
            ("attention", "acme"): door("attention"),
            ("quantizer", "four"): door("quantizer", schema="acme.options:Four"),
            ("model", "acme"): door("model", capabilities={"architectures": ("A", "B"), "types": {"b", "a"}}),
            ("format", "acme"): door("format", priority=5),
            ("logits_processor", "bias"): door("logits_processor"),
            ("adapter", "acme"): door("adapter"),
            ("engine", "acme"): door("engine"),
            ("hooks", "acme"): door("hooks"),
        }
    )


def test_a_worker_sees_what_was_chosen_and_what_it_chooses_from(registry: Registry) -> None:
    body, arrays = pack(pack_doors(registry, CHOSEN))
    found = unpack_doors(unpack(json.loads(json.dumps(body)), arrays))
    names = {(record.kind, record.name) for record in found.records()}
    assert names == {
        ("platform", "acme"),
        ("attention", "acme"),
        ("quantizer", "four"),
        ("model", "acme"),
        ("format", "acme"),
        ("logits_processor", "bias"),
        ("adapter", "acme"),
    }
    for kind, name in names:
        ours, theirs = registry.spec(kind, name), found.spec(kind, name)
        assert (ours.target, ours.schema, ours.probe, ours.priority) == (
            theirs.target,
            theirs.schema,
            theirs.probe,
            theirs.priority,
        )
    assert found.match("model", "architectures", "B") == ["acme"]
    assert found.match("model", "types", "b") == ["acme"]
    assert found.record("platform", "acme-gpu:acme").dist == "acme-gpu"


def test_what_was_not_chosen_or_is_ones_own_has_no_door(registry: Registry) -> None:
    chosen = {"platform": "acme", "attention": "mine.attention:Mine", "quantizer": None}
    kinds = [door["spec"]["kind"] for door in pack_doors(registry, chosen)]
    assert kinds.count("platform") == 1
    assert "attention" not in kinds and "quantizer" not in kinds
