from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pegboard_ppo.plugin import SPEC
from pegboard_sdk.configs import ready_configs
from pegboard_sdk.conformance import RecipeSuite

GIVEN = ["model=m", "data.path=d.jsonl", "output=o", "reward=r"]


class TestPpo(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, None),
        "full": (None, None),
        "lora": ("lora", None),
        "qlora": ("lora", "nf4"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [{"prompt": f"say {n}"} for n in range(16)]
    given: ClassVar[Sequence[str]] = ('rewards=[{use: "pegboard_sdk.toys.rewards:share"}]', "reference={}")
    small: ClassVar[Sequence[str]] = (
        "batch.size=16",
        "batch.accumulate=1",
        "rollout.prompts=4",
        "rollout.answers=4",
        "rollout.max_tokens=8",
    )
    learns: ClassVar[tuple[str, Sequence[str]]] = ("lora", ("optimizer.lr=0.03", "objective.kl=0.01"))
    steps: ClassVar[int] = 24
    metric: ClassVar[str] = "reward"
    rises: ClassVar[bool] = True


def test_every_config_has_its_models_and_rollouts_divide_into_steps() -> None:
    for name, config in ready_configs("ppo", GIVEN).items():
        assert config.reward.path == "r" and config.data.format["use"] == "prompt"
        assert (config.reference is None) == (name != "full")
        answers = config.rollout.prompts * config.rollout.answers
        assert answers % (config.batch.size * config.batch.accumulate) == 0
