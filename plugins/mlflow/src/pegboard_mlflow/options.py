"""Options of the MLflow logger."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MlflowOptions(BaseModel):
    """Where a run is recorded, and under which name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = Field(
        default=None, description="of the store; MLFLOW_TRACKING_URI, else mlflow.db beside the run's folder"
    )
    experiment: str = Field(default="pegboard", min_length=1, description="made where it does not exist")
    name: str | None = Field(
        default=None, description="what the page calls it; the run's name and its folder's if not given"
    )
    tags: dict[str, str] = Field(default_factory=dict)
