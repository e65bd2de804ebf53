from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from pegboard.config import load_config
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard_grpo.config import GrpoConfig
from pegboard_grpo.plugin import SPEC
from pegboard_sdk.configs import ready_configs
from pegboard_sdk.conformance import RecipeSuite

GIVEN = ["model=m", "data.path=d.jsonl", "output=o", "rewards=[gsm8k]"]


class TestGrpo(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, None),
        "full": (None, None),
        "lora": ("lora", None),
        "qlora": ("lora", "nf4"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [{"prompt": f"say {n}"} for n in range(16)]
    given: ClassVar[Sequence[str]] = ('rewards=[{use: "pegboard_sdk.toys.rewards:share"}]',)
    small: ClassVar[Sequence[str]] = (
        "batch.size=16",
        "batch.accumulate=1",
        "rollout.prompts=4",
        "rollout.answers=4",
        "rollout.max_tokens=8",
    )
    learns: ClassVar[tuple[str, Sequence[str]]] = ("lora", ("optimizer.lr=0.03",))
    steps: ClassVar[int] = 16
    metric: ClassVar[str] = "reward"
    rises: ClassVar[bool] = True


def test_rollouts_divide_into_steps() -> None:
    for config in ready_configs("grpo", GIVEN).values():
        assert config.objective["use"] == "grpo" and config.data.format["use"] == "prompt"
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
