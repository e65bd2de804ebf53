from __future__ import annotations

import pytest

from pegboard.config import list_configs, load_config
from pegboard.config.resolve import configs_folder
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard_grpo.config import GrpoConfig

GIVEN = ["model=m", "data.path=d.jsonl", "output=o", "rewards=[gsm8k]"]
CONFIGS = ["default", "full", "lora", "qlora"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_once_its_paths_are_given(name: str) -> None:
    registry = Registry.discover()
    assert list(list_configs(configs_folder(registry, "grpo"))) == CONFIGS
    config = GrpoConfig.model_validate(load_config(registry, "grpo", name, GIVEN))
    assert config.objective["use"] == "grpo"
    assert (config.adapter is None) == (name in ("default", "full"))
    assert (config.quantizer or {}).get("use") == ("nf4" if name == "qlora" else None)
    assert config.data.format["use"] == "prompt"
    answers = config.rollout.prompts * config.rollout.answers
    assert answers % (config.batch.size * config.batch.accumulate) == 0


def test_rewards_have_options_and_weights() -> None:
    given = [*GIVEN[:3], 'rewards=[{use: pattern, pattern: "a+", weight: 0.5}, gsm8k]', "rollout.temperature=0.5"]
    config = load_config(Registry.discover(), "grpo", None, given)
    first, second = config["rewards"]
    assert first == {"reward": {"use": "pattern", "pattern": "a+", "whole": False}, "weight": 0.5}
    assert second["weight"] == 1.0
    assert config["objective"]["temperature"] == 0.5
    assert GrpoConfig.model_validate(config).identity()["rewards"] == config["rewards"]


def test_a_rollout_must_fit() -> None:
    with pytest.raises(ConfigError, match="leaves no room"):
        load_config(Registry.discover(), "grpo", None, [*GIVEN, "batch.length=64"])
    with pytest.raises(ConfigError, match="set `steps`"):
        load_config(Registry.discover(), "grpo", None, [*GIVEN, "steps=null"])
