"""Options of the objective."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RewardOptions(BaseModel):
    """The Bradley-Terry model of preferences (Ouyang et al. 2022, arXiv:2203.02155)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin: bool = Field(
        default=True,
        description="a pair's score difference is to exceed the number `margin` of its row, where rows have one (arXiv:2307.09288)",
    )
    center: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared sum of a pair's scores, which keeps scores around zero (arXiv:2312.09244)",
    )
