from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Fp8Options(BaseModel):
    """Options of the `fp8` quantizer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    block: int | None = Field(
        default=128,
        ge=8,
        description="rows and columns that share a scale; null for one scale a matrix, an expert's own",
    )
    skip: list[str] = Field(
        default_factory=list, description="names, or ends of names, of linear layers that stay as they are"
    )
