from __future__ import annotations

import pytest

from pegboard_sdk.configs import ready_configs

GIVEN = ["model=m", "teacher=t", "data.path=d.jsonl", "output=o"]
CONFIGS = {"distill": ["default", "full", "lora", "qlora"]}


@pytest.mark.parametrize("recipe", CONFIGS)
def test_every_config_is_valid_once_its_paths_are_given(recipe: str) -> None:
    configs = ready_configs(recipe, GIVEN)
    assert list(configs) == CONFIGS[recipe]
    for name, config in configs.items():
        assert config.objective["use"] == recipe
        assert (config.adapter is None) == (name in ("default", "full"))
        assert (config.quantizer or {}).get("use") == ("nf4" if name == "qlora" else None)
