"""A request: what was asked, and the states it passes through.

    from \\ to            waiting  running  preempted  stopped  length  aborted  timed_out  failed
    waiting_for_grammar      x                                             x         x         x
    waiting                            x                                   x         x         x
    running                                     x         x        x       x         x         x
    preempted                          x                                   x         x         x

stopped, length, aborted, timed_out and failed are terminal. A request enters as waiting, or as waiting_for_grammar when it has one
that is not compiled yet. Every terminal state frees the slot, the pages, the grammar's state and the stream of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from pegboard.interfaces.engine import FinishReason, RequestOptions
from pegboard.types import SamplingParams
from pegboard_engine.prefix import Chain, Found

if TYPE_CHECKING:
    import numpy as np

    from pegboard_engine.text import OutputText


class State(Enum):
    """State of a request."""

    WAITING_FOR_GRAMMAR = "waiting_for_grammar"
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    STOPPED = "stopped"
    LENGTH = "length"
    ABORTED = "aborted"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


_ENDS = frozenset({State.ABORTED, State.TIMED_OUT, State.FAILED})
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.WAITING_FOR_GRAMMAR: _ENDS | {State.WAITING},
    State.WAITING: _ENDS | {State.RUNNING},
    State.RUNNING: _ENDS | {State.PREEMPTED, State.STOPPED, State.LENGTH},
    State.PREEMPTED: _ENDS | {State.RUNNING},
    State.STOPPED: frozenset(),
    State.LENGTH: frozenset(),
    State.ABORTED: frozenset(),
    State.TIMED_OUT: frozenset(),
    State.FAILED: frozenset(),
}
FINISH_REASONS: Mapping[State, FinishReason] = {
    State.STOPPED: "stop",
    State.LENGTH: "length",
    State.ABORTED: "abort",
    State.TIMED_OUT: "timeout",
    State.FAILED: "error",
}


class Request:
    """One answer that is wanted. What changes with every step is in the scheduler's table while it runs, and here otherwise.

    id: the request's; index: which of its answers. arrival: its place in the order of arrival. tokens: int32, prompt and confirmed
    output; current unless the request runs. limit: number of tokens at which it ends. seed: of its random stream. stop_ids: ids that
    end it. digests: of its full pages, as far as they are known; root: what their chain starts from. found: pages of its beginning
    that were in the cache when it was looked at last, while it waits. slot: its row of the table, -1 unless it runs. created,
    entered, first_token: when it came, first ran and had its first token, by the engine's clock; 0 for not yet. sync: its next token
    cannot be drawn before the last one is known. long: its keys are those of a sequence beyond the model's `rope_limit`. matcher: of
    its grammar. piece, logprobs: of one that is told as a whole, so far.
    """

    __slots__ = (
        "adapter",
        "arrival",
        "cached",
        "created",
        "digests",
        "end_ids",
        "entered",
        "error",
        "first_token",
        "found",
        "id",
        "index",
        "limit",
        "logprobs",
        "long",
        "matcher",
        "num_prompt",
        "options",
        "params",
        "passed",
        "piece",
        "pooled",
        "prompt_logprobs",
        "root",
        "seed",
        "slot",
        "state",
        "stop_ids",
        "stop_reason",
        "sync",
        "text",
        "tokens",
    )

    def __init__(
        self,
        id: str,
        prompt: np.ndarray,
        params: SamplingParams,
        options: RequestOptions | None = None,
        *,
        index: int = 0,
        arrival: int = 0,
        created: float = 0.0,
        limit: int,
        seed: int = 0,
        stop_ids: tuple[int, ...] = (),
        end_ids: tuple[int, ...] = (),
        root: bytes = b"",
        adapter: int = -1,
    ) -> None:
        self.id = id
        self.index = index
        self.arrival = arrival
        self.created = created
        self.entered = 0.0
        self.first_token = 0.0
        self.params = params
        self.options = options or RequestOptions()
        self.tokens = prompt
        self.num_prompt = len(prompt)
        self.limit = limit
        self.seed = seed
        self.stop_ids = stop_ids
        self.end_ids = end_ids
        self.root = root
        self.adapter = adapter
        self.digests = Chain()
        self.found: Found | None = None
        self.cached = -1
        self.slot = -1
        self.passed = 0
        self.sync = params.grammar is not None
        self.long = False
        self.state = State.WAITING
        self.matcher: Any = None
        self.text: OutputText | None = None
        self.error: str | None = None
        self.stop_reason: str | int | None = None
        self.prompt_logprobs: list[Any] | None = None
        self.logprobs: list[Any] = []
        self.piece = ""
        self.pooled: Any = None

    @property
    def num_output(self) -> int:
        """Tokens generated so far; current unless the request runs."""
        return len(self.tokens) - self.num_prompt

    @property
    def watched(self) -> bool:
        """Whether a token means more to it than one more id: its text, its grammar or its log-probabilities are wanted."""
        params = self.params
        asks = params.logprobs is not None or bool(params.logprob_ids)
        return asks or self.reads_text or params.grammar is not None

    @property
    def reads_text(self) -> bool:
        """Whether its text is needed as it comes: told, or looked through for stop texts."""
        return self.text is not None and not (self.options.whole and not self.params.stop)

    @property
    def embeds(self) -> bool:
        """Whether the hidden state of the prompt is wanted in place of tokens."""
        return self.options.task == "embed"

    def to(self, state: State) -> None:
        """Move to `state`. Raises RuntimeError when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"request {self.id}: {self.state.value} -> {state.value} is not a legal transition")
        self.state = state

    @property
    def finished(self) -> bool:
        """Whether the state is terminal."""
        return not TRANSITIONS[self.state]
