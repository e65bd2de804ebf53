from __future__ import annotations

import pytest

from pegboard.config import load_config
from pegboard.plugins.load import Registry
from pegboard_sdk.configs import ready_configs

GIVEN = ["model=m", "data.path=d.jsonl", "output=o"]
CONFIGS = {
    "dpo": ["default", "full", "ipo", "lora", "qlora", "robust"],
    "kto": ["default", "full", "lora", "qlora"],
    "orpo": ["default", "full", "lora", "qlora"],
    "simpo": ["default", "full", "lora", "qlora"],
}


@pytest.mark.parametrize("recipe", CONFIGS)
def test_every_config_is_valid_once_its_paths_are_given(recipe: str) -> None:
    configs = ready_configs(recipe, GIVEN)
    assert list(configs) == CONFIGS[recipe]
    for name, config in configs.items():
        assert config.objective["use"] == recipe
        assert (config.adapter is None) == (name in ("default", "full"))
        assert (config.quantizer or {}).get("use") == ("nf4" if name == "qlora" else None)


@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_the_reference_is_a_frozen_copy_or_the_policy_without_its_adapter(recipe: str) -> None:
    registry = Registry.discover()
    for name in CONFIGS[recipe]:
        config = load_config(registry, recipe, name, GIVEN)
        assert (config["reference"] is None) == (config["adapter"] is not None)
