"""Options of the executor `multiproc`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MultiprocOptions(BaseModel):
    """How long the parent waits, in seconds, before it holds a worker for lost.

    start_timeout: from the start of the process until the model is loaded. step_timeout: for one step, and for any other request.
    stop_timeout: until a worker that was asked to stop is ended.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_timeout: float = Field(default=1800, gt=0)
    step_timeout: float = Field(default=600, gt=0)
    stop_timeout: float = Field(default=10, gt=0)
