from __future__ import annotations

import pytest

from pegboard.config import list_configs, load_config
from pegboard.config.resolve import configs_folder
from pegboard.plugins.load import Registry
from pegboard_ppo.config import PpoConfig

GIVEN = ["model=m", "data.path=d.jsonl", "output=o", "reward=r"]
CONFIGS = ["default", "full", "lora", "qlora"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_once_its_paths_are_given(name: str) -> None:
    registry = Registry.discover()
    assert list(list_configs(configs_folder(registry, "ppo"))) == CONFIGS
    config = PpoConfig.model_validate(load_config(registry, "ppo", name, GIVEN))
    assert config.objective["use"] == "ppo"
    assert (config.adapter is None) == (name in ("default", "full"))
    assert (config.quantizer or {}).get("use") == ("nf4" if name == "qlora" else None)
    assert config.data.format["use"] == "prompt"
    assert config.reward is not None and config.reward.path == "r"
    assert (config.reference is None) == (name != "full")
    answers = config.rollout.prompts * config.rollout.answers
    assert answers % (config.batch.size * config.batch.accumulate) == 0
