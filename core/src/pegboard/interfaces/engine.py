"""Kind `engine`: continuous generation for many requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry
    from pegboard.types import SamplingParams

FinishReason = Literal["stop", "length", "abort", "timeout", "error"]


Task = Literal["generate", "embed"]
Pooling = Literal["last", "mean"]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request is beside its prompt and sampling.

    priority: lower runs first, where the engine's policy looks at it. deadline: seconds from its arrival until it ends as "timeout",
    however far it came. queue_timeout: seconds that it may wait for its first step. adapter: name of a loaded adapter.
    salt: requests share cached prefixes only with those of the same salt (a tenant's, say).
    whole: one output alone, the last, with all tokens, text and log-probabilities; it costs less than one a step.
    task: "embed" returns the pooled hidden state of the prompt in place of tokens. pooling: how.
    labels: texts that the engine only hands on to observers. A server gives "model" and "operation" (as its client named them) and
    the client's "traceparent" and "tracestate" (W3C Trace Context).
    """

    priority: int = 0
    deadline: float | None = None
    queue_timeout: float | None = None
    adapter: str | None = None
    salt: str = ""
    whole: bool = False
    task: Task = "generate"
    pooling: Pooling = "last"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What was asked for, and when what happened: seconds of `time.monotonic`, None for what did not come to be.

    params, options: as the request was added. arrival: it was added. started: its first step was scheduled. first_token: its first
    token was there. finished: it ended. num_cached_tokens: prompt tokens that were found in the cache.
    """

    params: SamplingParams
    options: RequestOptions
    arrival: float
    started: float | None
    first_token: float | None
    finished: float
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the model's own distribution.

    token_id, logprob, rank: the token that stands there; rank 1 is the most probable one. top: (id, logprob) of the most probable
    ids, best first. extra: those of `SamplingParams.logprob_ids`, in their order.
    """

    token_id: int
    logprob: float
    rank: int
    top: Sequence[tuple[int, float]] = ()
    extra: Sequence[tuple[int, float]] = ()


@dataclass
class RequestOutput:
    """What one step added to one answer of a request.

    token_ids: the new ids. text: the text that became certain with them. finish_reason: None while the answer goes on.
    error: a line for people when finish_reason is "error". num_prompt_tokens, num_output_tokens: totals so far.
    index: which answer, below `SamplingParams.n`. stop_reason: the stop text or id that ended it; None for the tokenizer's own end.
    logprobs: one entry for each of token_ids, where asked for. prompt_logprobs: with the first output only, one entry a prompt
    token, None for the first. num_cached_tokens: prompt tokens that were found in the cache. embedding: with task "embed".
    rejected: whether the error is a mistake of the request's (a grammar that does not compile, say), so that `error` may be told to
    whoever sent it. lost: whether it failed since what computed it went away, which is no fault of its own: it may be sent again.
    queue_time: seconds from its arrival to its first step, with the first output that can tell.
    record: with the last output, for observers.
    """

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    index: int = 0
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    embedding: list[float] | None = None
    rejected: bool = False
    lost: bool = False
    queue_time: float | None = None
    record: RequestRecord | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Numbers of a running engine; steps and all behind it only ever grow.

    running, waiting: requests. pages, held_pages, cached_pages: of the cache; a cached page is free and may be found again.
    proposed, accepted: tokens of a speculator. finished: by finish reason. expert_tokens: of a mixture, by layer and expert, where the
    engine was asked to count.
    """

    running: int = 0
    waiting: int = 0
    pages: int = 0
    held_pages: int = 0
    cached_pages: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    proposed: int = 0
    accepted: int = 0
    finished: Mapping[FinishReason, int] = field(default_factory=dict)
    expert_tokens: Sequence[Sequence[int]] = ()


class Engine(ABC):
    """Requests in, tokens out. Constructed with the validated options of its schema; driven by one thread.

    max_model_len: tokens that prompt and output of one request can have in all. vocab_size: ids are below it.
    """

    max_model_len: int
    vocab_size: int

    @abstractmethod
    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        """Take a model and allocate the cache; called once, before anything else.

        The model may be one that is trained in the same process. tokenizer: None where prompts are ids and no text is wanted.
        registry: where the engine finds its executor, and the observers of its requests. Raises ConfigError when the memory
        does not suffice, saying what would fit.
        """

    @abstractmethod
    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        options: RequestOptions | None = None,
    ) -> None:
        """Queue a request. Raises ConfigError for parameters that cannot be met (a prompt longer than the context, say).

        What takes time to find out, such as whether a grammar can be compiled, ends the request later, as an output.
        """

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """End a request and free what it holds. Unknown and ended requests are ignored."""

    @abstractmethod
    def step(self) -> Sequence[RequestOutput]:
        """Run one step and return what it added. Empty when there is nothing to do yet."""

    @abstractmethod
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running, or has an output that `step` has not returned yet, or `step` has other work."""

    @abstractmethod
    def update_weights(self, version: int) -> None:
        """Refresh every form derived from the model's weights after they changed in place; new tokens use the new weights."""

    @abstractmethod
    def close(self) -> None:
        """Abort what runs and free the cache. Safe to call twice."""

    def stats(self) -> EngineStats:
        """Return numbers for monitoring. May be called from any thread."""
        return EngineStats()

    def prepare(self) -> bool:
        """Use a moment in which no request is there to make later steps faster; return whether another one would be of use.

        It takes a small part of a second at most.
        """
        return False

    def reset_cache(self) -> None:
        """Forget every cached prefix; what runs is not touched."""
        return

    def load_adapter(self, name: str, folder: str) -> None:
        """Make the adapter of a folder available to requests. Raises ConfigError or ModelError when it cannot be served, ConfigError
        when the name is taken or there is no room.
        """
        from pegboard.errors import ConfigError

        raise ConfigError(
            f"{type(self).__name__} serves no adapters beside its model", fix="merge the adapter into the model"
        )

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError while requests use it, or when there is none of that name."""
        from pegboard.errors import ConfigError

        raise ConfigError(f"no adapter {name!r} is loaded", fix="name one that is")

    def adapters(self) -> Mapping[str, str]:
        """Return the loaded adapters, name -> folder."""
        return {}
