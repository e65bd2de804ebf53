"""Options of the console logger."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ConsoleOptions(BaseModel):
    """How a run is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: Literal["auto", "bar", "lines"] = Field(
        default="auto", description="a progress bar, plain lines, or a bar where the output is a terminal"
    )
    every: int = Field(default=10, ge=1, description="plain lines: steps from one line to the next")
