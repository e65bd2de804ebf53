"""/v1/completions"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pegboard_server.schemas.base import Part, Prompts, ResponseFormat, Sampling, Usage


class CompletionRequest(Sampling):
    """echo: the answer begins with the prompt, and with `logprobs` that prompt's log-probabilities too."""

    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    best_of: int | None = Field(default=None, ge=1)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    suffix: str | None = None
    response_format: ResponseFormat | None = None


class CompletionLogprobs(Part):
    """One entry a token in each list. text_offset: where its text begins in the choice's."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Part):
    """One answer; answers to several prompts follow each other."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(Part):
    """The whole answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
