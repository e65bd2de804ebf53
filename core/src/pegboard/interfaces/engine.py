"""Kind `engine`: continuous generation for many requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry
    from pegboard.types import SamplingParams

FinishReason = Literal["stop", "length", "abort", "timeout", "error"]


@dataclass(slots=True)
class RequestOutput:
    """What one step added to one request.

    token_ids: the new ids. text: the text that became certain with them. finish_reason: None while the request runs.
    error: a line for people when finish_reason is "error". num_prompt_tokens, num_output_tokens: totals so far.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


class Engine(ABC):
    """Requests in, tokens out. Constructed with the validated options of its schema; driven by calling `step` from one thread."""

    @abstractmethod
    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        """Take a model and allocate the cache; called once, before anything else.

        The model may be one that is trained in the same process. tokenizer: None where prompts are ids and no text is wanted.
        registry: where the engine finds its executor, and the observers of its requests. Raises ConfigError when the memory
        does not suffice, saying what would fit.
        """

    @abstractmethod
    def add_request(self, request_id: str, prompt: str | Sequence[int], params: SamplingParams) -> None:
        """Queue a request. Raises ConfigError for parameters that cannot be met (a prompt longer than the context, say)."""

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """End a request and free what it holds. Unknown and ended requests are ignored."""

    @abstractmethod
    def step(self) -> list[RequestOutput]:
        """Run one step and return what it added. Empty when there is nothing to do."""

    @abstractmethod
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running."""

    @abstractmethod
    def update_weights(self, version: int) -> None:
        """Refresh every form derived from the model's weights after they changed in place; new tokens use the new weights."""

    @abstractmethod
    def close(self) -> None:
        """Abort what runs and free the cache. Safe to call twice."""
