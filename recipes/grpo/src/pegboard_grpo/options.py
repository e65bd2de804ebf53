"""Options of the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GrpoOptions(BaseModel):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and what grew from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["grpo", "dr_grpo", "bnpo", "dapo"] = Field(
        default="dapo",
        description="what a token counts: 1 / (its answer's length x answers) (grpo), 1 / (longest answer x answers) (dr_grpo, "
        "arXiv:2503.20783), 1 / tokens of its forward pass (bnpo), 1 / tokens of the step (dapo, arXiv:2503.14476)",
    )
    clip: float = Field(default=0.2, gt=0, lt=1, description="how far below 1 a ratio still counts")
    clip_above: float | None = Field(
        default=None, gt=0, description="how far above 1; as `clip` where it is left out (DAPO: 0.28)"
    )
    most: float | None = Field(
        default=None,
        gt=1,
        description="the highest ratio that counts where the advantage is negative (arXiv:2505.07291)",
    )
    ratio: Literal["token", "sequence"] = Field(
        default="token", description="sequence: the geometric mean over an answer (GSPO, arXiv:2507.18071)"
    )
    beta: float = Field(default=0.0, ge=0, description="weight of the k3 estimate of the divergence from the reference")
    scale: Literal["group", "batch", "none"] = Field(
        default="group", description="what rewards less their group's mean are divided by: a standard deviation"
    )
    learn_cut: bool = Field(
        default=True, description="answers that were cut at the longest length are learned from too"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="at which answers are sampled; configs take it from `rollout`"
    )
    max_tokens: int = Field(
        default=128, ge=1, description="longest answer, for dr_grpo; configs take it from `rollout`"
    )
