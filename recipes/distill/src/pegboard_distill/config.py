"""The configuration: that of every training run, the objective with its options, and the teacher."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import RoleSection, Section, TrainConfig


class OwnSection(Section):
    """Answers of the student in the place of the data's (GKD, arXiv:2306.13649)."""

    share: float = Field(default=1.0, gt=0, le=1, description="of the batches whose answers are the student's own")
    max_tokens: int = Field(default=128, ge=1, description="longest answer; prompt and answer are cut at batch.length")
    temperature: float = Field(default=1.0, gt=0, description="at which answers are sampled")
    engine: Annotated[Choice, PluginSection("engine", default="paged")] = Field(
        default="paged",
        validate_default=True,
        description="an engine plugin",
    )


class DistillConfig(TrainConfig):
    """A run in which a student learns from a teacher."""

    objective: Annotated[Choice, PluginSection("objective")]
    teacher: RoleSection = Field(description="the model that is learned from; it may be quantised")
    rollout: OwnSection | None = Field(
        default=None,
        description="the student answers the prompts itself; without this section the data's answers are used",
    )

    @model_validator(mode="after")
    def _fits(self) -> DistillConfig:
        if self.rollout is not None and self.batch.pack:
            raise ValueError(
                "set batch.pack=false with `rollout`: how long its answers become is not known when batches are filled"
            )
        return self

    def identity(self, ranks: int = 1) -> dict[str, Any]:
        """Return what a resumed run must share; how the student answers too."""
        found = super().identity(ranks)
        if self.rollout is not None:
            found["rollout"] = self.rollout.model_dump(mode="json", exclude={"engine"})
        return found
