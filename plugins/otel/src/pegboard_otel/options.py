"""Options of the observer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TraceOptions(BaseModel):
    """Where traces go. The environment's OTEL variables say the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="base URL of a collector, such as http://127.0.0.1:4318; the OTEL variables say it if not given",
    )
    queue: int = Field(default=4096, ge=1, description="finished requests that may wait to be made into spans")
