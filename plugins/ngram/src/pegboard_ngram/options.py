"""The speculator's part of a config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Options(BaseModel):
    """Options of `ngram`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most: int = Field(default=5, ge=1, le=64, description="longest proposal")
    max_ngram: int = Field(default=4, ge=1, le=32, description="last tokens that are looked for first")
    min_ngram: int = Field(default=2, ge=1, le=32, description="fewest last tokens that are looked for")

    @model_validator(mode="after")
    def _ordered(self) -> Options:
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram is {self.min_ngram}, more than max_ngram, which is {self.max_ngram}")
        return self
