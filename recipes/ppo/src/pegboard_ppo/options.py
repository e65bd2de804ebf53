"""Options of the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PpoOptions(BaseModel):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), as for language models (arXiv:1909.08593)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float = Field(default=0.2, gt=0, lt=1, description="how far from 1 a ratio still counts")
    value_clip: float | None = Field(
        default=0.2, gt=0, description="how far a value may move from that of the rollout; null for no limit"
    )
    value_weight: float = Field(default=0.1, ge=0, description="of the value loss beside the policy's")
    gamma: float = Field(default=1.0, gt=0, le=1, description="what a reward is worth a token earlier")
    lam: float = Field(default=0.95, ge=0, le=1, description="λ of generalised advantage estimation (arXiv:1506.02438)")
    kl: float = Field(
        default=0.05, ge=0, description="weight of the divergence from the reference in each token's reward"
    )
    kl_target: float | None = Field(
        default=None, gt=0, description="divergence of an answer that the weight is steered to; null leaves it fixed"
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="answers over which it is steered")
    estimator: Literal["k1", "k3"] = Field(
        default="k1", description="of the divergence: log(p/q), or q/p - log(q/p) - 1, which is never negative"
    )
    whiten: bool = Field(default=True, description="advantages of a rollout get mean 0 and variance 1")
    whiten_rewards: bool = Field(default=False, description="rewards of its tokens get variance 1; their mean stays")
    cut_penalty: float = Field(
        default=0.0, ge=0, description="taken from the reward of answers that were cut at the longest length"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="at which answers are sampled; configs take it from `rollout`"
    )
