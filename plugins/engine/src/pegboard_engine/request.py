"""A request: what was asked, how far it has come, and the states it passes through.

    from \\ to    running  preempted  waiting  stopped  length  aborted  failed
    waiting         x                                             x        x
    running                   x                   x        x      x        x
    preempted       x                                             x        x

stopped, length, aborted and failed are terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import FinishReason
from pegboard.types import SamplingParams


class State(Enum):
    """State of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    STOPPED = "stopped"
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"


_ENDS = frozenset({State.ABORTED, State.FAILED})
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.WAITING: _ENDS | {State.RUNNING},
    State.RUNNING: _ENDS | {State.PREEMPTED, State.STOPPED, State.LENGTH},
    State.PREEMPTED: _ENDS | {State.RUNNING},
    State.STOPPED: frozenset(),
    State.LENGTH: frozenset(),
    State.ABORTED: frozenset(),
    State.FAILED: frozenset(),
}
FINISH_REASONS: Mapping[State, FinishReason] = {
    State.STOPPED: "stop",
    State.LENGTH: "length",
    State.ABORTED: "abort",
    State.FAILED: "error",
}


class Request:
    """One request. The scheduler owns its state and pages; the engine appends its tokens.

    tokens: prompt and confirmed output. computed: leading tokens whose keys and values are in the cache. scheduled: those that will
    be once the steps in flight are collected; computed <= scheduled <= len(tokens).
    pages: pages of the cache, in order. limit: length of `tokens` at which the request ends. seed: of its random stream.
    """

    __slots__ = (
        "computed",
        "error",
        "greedy",
        "id",
        "limit",
        "num_prompt",
        "pages",
        "params",
        "scheduled",
        "seed",
        "state",
        "stop_ids",
        "tokens",
    )

    def __init__(
        self, id: str, prompt: list[int], params: SamplingParams, *, limit: int, seed: int, stop_ids: frozenset[int]
    ) -> None:
        self.id = id
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.params = params
        self.limit = limit
        self.seed = seed
        self.stop_ids = stop_ids
        self.greedy = params.temperature == 0 and params.repetition_penalty == 1
        self.state = State.WAITING
        self.computed = 0
        self.scheduled = 0
        self.pages: list[int] = []
        self.error: str | None = None

    def to(self, state: State) -> None:
        """Move to `state`. Raises RuntimeError when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"request {self.id}: {self.state.value} -> {state.value} is not a legal transition")
        self.state = state

    @property
    def finished(self) -> bool:
        """Whether the state is terminal."""
        return not TRANSITIONS[self.state]

    @property
    def confirmed(self) -> int:
        """Tokens whose ids are known."""
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    def append(self, token: int) -> State | None:
        """Take a sampled token and return the terminal state that it leads to, if any."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return State.STOPPED
        if len(self.tokens) >= self.limit:
            return State.LENGTH
        return None


def check_params(params: SamplingParams) -> None:
    """Raise ConfigError naming the first parameter that has no meaning."""
    checks = (
        ("max_tokens", params.max_tokens, params.max_tokens >= 1, "at least 1"),
        ("temperature", params.temperature, 0 <= params.temperature < math.inf, "0 (greedy) or above"),
        ("top_k", params.top_k, params.top_k >= 0, "0 (off) or above"),
        ("top_p", params.top_p, 0 < params.top_p <= 1, "above 0 and at most 1"),
        ("min_p", params.min_p, 0 <= params.min_p <= 1, "between 0 and 1"),
        ("repetition_penalty", params.repetition_penalty, 0 < params.repetition_penalty < math.inf, "above 0"),
        ("seed", params.seed, params.seed is None or 0 <= params.seed < 2**63, "between 0 and 2**63 - 1"),
        ("stop", params.stop, all(params.stop), "without empty texts"),
    )
    for name, value, legal, expected in checks:
        if not legal:
            raise ConfigError(f"{name} is {value!r}", fix=f"{name} must be {expected}")
