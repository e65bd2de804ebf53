from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Int8Options(BaseModel):
    """Options of the `int8` quantizer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    head: bool = Field(
        True, description="quantise the output head too, and the embedding when it shares the head's weights"
    )
