"""Options of the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DistillOptions(BaseModel):
    """Distillation of a teacher's distributions (Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2023, arXiv:2306.13649)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    divergence: Literal["forward_kl", "reverse_kl", "symmetric_kl", "js"] = Field(
        default="forward_kl", description="of the student's distribution from the teacher's"
    )
    beta: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="js: the teacher's share in the mixture, towards 0 like forward_kl, towards 1 like reverse_kl; "
        "symmetric_kl: the share of reverse_kl",
    )
    temperature: float = Field(default=1.0, gt=0, description="by which the logits of both are divided")
    top_k: int | None = Field(
        default=None, ge=1, description="only the teacher's most likely tokens, all others taken together"
    )
    weight: float = Field(
        default=1.0, ge=0, le=1, description="of the divergence; the rest is that of -log p of the data's tokens"
    )

    @model_validator(mode="before")
    @classmethod
    def _beta_fits(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("beta", 0.5) != 0.5:
            divergence = value.get("divergence", "forward_kl")
            if divergence not in ("js", "symmetric_kl"):
                raise ValueError(f"divergence={divergence} has no beta; js and symmetric_kl have")
        return value
