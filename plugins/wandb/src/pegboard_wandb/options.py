"""Options of the W&B logger."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WandbOptions(BaseModel):
    """Where a run is recorded, and under which name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(default="pegboard", min_length=1, description="of the run")
    entity: str | None = Field(default=None, description="user or team; the account's own if not given")
    name: str | None = Field(
        default=None, description="what the page calls it; the run's name and its folder's if not given"
    )
    group: str | None = Field(default=None, description="runs that belong together")
    tags: tuple[str, ...] = ()
    notes: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = Field(
        default=None, description="as WANDB_MODE, which counts where this is not given"
    )
