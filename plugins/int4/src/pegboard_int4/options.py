from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Int4Options(BaseModel):
    """Options of the `int4` quantizer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    group: int = Field(default=32, ge=8, multiple_of=8, description="weights of a row that share a scale")
    activations: bool = Field(
        default=True, description="round the inputs of each layer to 8 bits, with a range for each token"
    )
    skip: list[str] = Field(
        default_factory=list, description="names, or ends of names, of linear layers that stay as they are"
    )


class Int4TrainingOptions(Int4Options):
    """Options of the `int4_qat` quantizer."""

    start_step: int = Field(
        default=0, ge=0, description="steps that are trained in full precision before rounding begins"
    )
