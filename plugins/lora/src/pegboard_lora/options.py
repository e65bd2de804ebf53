"""The adapter's part of a config."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class LoraOptions(BaseModel):
    """Options of `lora` and `dora`.

    targets: a list of names that end a module's name (`q_proj`) or of fnmatch patterns, or one string: "all-linear",
    or a regular expression for whole names; None for what the model's family says, its attention.
    rank_pattern, alpha_pattern: regular expression -> value for modules whose name ends in a match of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] | None = Field(default=None, min_length=1)
    rslora: bool = False
    init: Literal["default", "gaussian"] = "default"
    bias: Literal["none"] = "none"
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"

    @field_validator("targets")
    @classmethod
    def _regex_compiles(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str):
            _compile(value)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_compile(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, number in value.items():
            _compile(pattern)
            if number <= 0:
                raise ValueError(f"{pattern!r} is {number}; it must be positive")
        return value

    def rank_of(self, name: str) -> int:
        """Rank of the module called `name`."""
        return int(_first_match(self.rank_pattern, name, self.rank))

    def scaling_of(self, name: str) -> float:
        """Factor on B A of the module called `name`: alpha / rank, or alpha / sqrt(rank) with rslora."""
        rank, alpha = self.rank_of(name), float(_first_match(self.alpha_pattern, name, self.alpha))
        return alpha / (rank**0.5 if self.rslora else rank)


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def _first_match(patterns: dict[str, int] | dict[str, float], name: str, default: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)
