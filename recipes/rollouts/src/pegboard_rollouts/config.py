"""The configuration that recipes with rollouts share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import Section, TrainConfig


class RolloutSection(Section):
    """How answers are sampled from the model that is trained."""

    prompts: int = Field(default=8, ge=1, description="prompts of a rollout, over all processes")
    answers: int = Field(default=8, ge=1, le=128, description="answers to each prompt")
    max_tokens: int = Field(default=128, ge=1, description="longest answer, in tokens")
    temperature: float = Field(
        default=1.0, gt=0, description="of sampling, and of the log-probabilities that are trained"
    )
    top_k: int = Field(default=0, ge=0, description="sample among so many most likely tokens; 0 for all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the most likely tokens of this share")
    epochs: int = Field(default=1, ge=1, description="how often the optimizer sees each answer")
    engine: Annotated[Choice, PluginSection("engine", default="paged")] = Field(
        default="paged",
        validate_default=True,
        description="an engine plugin",
    )


class RewardSection(Section):
    """A reward and its weight. A bare string is its name; a mapping with `use` holds options and `weight` side by side."""

    reward: Annotated[Choice, PluginSection("reward")]
    weight: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"reward": value}
        if isinstance(value, dict) and "use" in value:
            options = {key: option for key, option in value.items() if key != "weight"}
            return {"reward": options, "weight": value.get("weight", 1.0)}
        return value


class RolloutConfig(TrainConfig):
    """A run that learns from answers of the model that is trained."""

    objective: Annotated[Choice, PluginSection("objective")]
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    rewards: list[RewardSection] = Field(
        default_factory=list, description="what an answer is worth: their weighted sum"
    )

    @model_validator(mode="after")
    def _fits(self) -> RolloutConfig:
        if self.steps is None:
            raise ValueError("set `steps`: prompts are answered again and again, so that no data say when to end")
        if self.rollout.max_tokens >= self.batch.length:
            raise ValueError(
                f"rollout.max_tokens ({self.rollout.max_tokens}) leaves no room for a prompt in batch.length "
                f"({self.batch.length})"
            )
        return self

    def identity(self, ranks: int = 1) -> dict[str, Any]:
        """Return what a resumed run must share; how answers are sampled and judged too."""
        more = self.model_dump(mode="json", include={"rollout", "rewards"})
        del more["rollout"]["engine"]
        return {**super().identity(ranks), **more}
