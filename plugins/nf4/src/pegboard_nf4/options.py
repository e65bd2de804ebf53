from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Nf4Options(BaseModel):
    """Options of the `nf4` quantizer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    double: bool = Field(
        default=True, description="hold the scales themselves in 8 bits: 4.13 bits a weight in the place of 4.5"
    )
    skip: list[str] = Field(
        default_factory=list, description="names, or ends of names, of linear layers that stay as they are"
    )
