"""Options of the rewards."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ExactOptions(BaseModel):
    """1 for the right final answer, else 0 (Cobbe et al. 2021, arXiv:2110.14168)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(default="answer", description="the column that holds the solution")
    mark: str = Field(default="####", min_length=1, description="what stands before the final answer")
    flexible: bool = Field(default=True, description="without the mark, the last number of an answer counts")


class PatternOptions(BaseModel):
    """1 where an answer matches a regular expression, else 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Field(description="a regular expression of Python's, in which a dot matches a line's end too")
    whole: bool = Field(default=False, description="the whole answer must match, not only a part of it")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value
