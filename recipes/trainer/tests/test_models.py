"""Which sections of a config a role is built from."""

from __future__ import annotations

from typing import Any

import pytest

from pegboard.errors import ConfigError
from pegboard.plugins.spec import RecipeSpec, RoleSpec
from pegboard_sdk.toys.model import random_model
from pegboard_trainer.config import RoleSection, TrainConfig
from pegboard_trainer.models import Sections, freeze, sections_of

POLICY = RoleSpec("policy", trained=True)


class Config(TrainConfig):
    reference: RoleSection | None = None
    value: RoleSection | None = None
    reward: RoleSection | None = None


def config(**more: Any) -> Config:
    base = {
        "model": {"path": "base", "dtype": "bfloat16", "revision": "v1"},
        "data": "rows.jsonl",
        "output": "runs/x",
        "optimizer": "adamw",
    }
    return Config.model_validate({**base, **more})


def sections(*roles: RoleSpec, **more: Any) -> dict[str, Sections | None]:
    return sections_of(RecipeSpec(target="x:X", roles=(POLICY, *roles)), config(**more))


def test_a_reference_is_the_policy_with_its_adapter_off_or_a_copy() -> None:
    reference = RoleSpec("reference", adapter_off=True)
    assert sections(reference, adapter="lora")["reference"] is None
    copy = sections(reference, quantizer="nf4")["reference"]
    assert copy is not None
    assert (copy.model.path, copy.adapter, copy.quantizer) == ("base", None, {"use": "nf4"})
    own = sections(reference, adapter="lora", reference={})["reference"]
    assert own is not None
    assert (own.model.path, own.model.revision, own.adapter) == ("base", "v1", None)


def test_what_a_section_leaves_out_is_as_in_the_role_that_it_is_like() -> None:
    value = RoleSpec("value", trained=True, head="scalar", like="reward")
    reward = RoleSpec("reward", head="scalar")
    found = sections(reward, value, reward="judge", adapter="lora")
    assert found["reward"] is not None and found["value"] is not None
    assert (found["reward"].model.path, found["reward"].model.dtype, found["reward"].model.revision) == (
        "judge",
        "bfloat16",
        None,
    )
    assert found["value"].model.path == "judge"
    assert sections(value, adapter="lora")["value"] == sections(POLICY, adapter="lora")["policy"]


def test_an_optional_role_without_a_section_does_not_exist() -> None:
    reward = RoleSpec("reward", head="scalar", optional=True)
    assert list(sections(reward)) == ["policy"]
    assert list(sections(reward, reward={"path": "judge", "dtype": "float32"})) == ["policy", "reward"]


def test_frozen_patterns() -> None:
    model = random_model().model
    freeze(model, ["model.layers.0.*", "*norm.weight"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any(name.startswith("model.layers.0.") or name.endswith("norm.weight") for name in trained)
    with pytest.raises(ConfigError, match=r"matches 'model\.layer\.\*'"):
        freeze(model, ["model.layer.*"])
    with pytest.raises(ConfigError, match="nothing is left"):
        freeze(model, ["*"])
