"""What a step tells: an output for each answer that it added something to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from pegboard.interfaces.engine import RequestOutput, RequestRecord
from pegboard_engine.request import FINISH_REASONS, Request, State

_Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]


class StepOutputs(Sequence[RequestOutput]):
    """Outputs in the order in which they came. Those that only tell a token stay columns until somebody looks at one."""

    __slots__ = ("_length", "_made", "_parts")

    def __init__(self) -> None:
        self._parts: list[RequestOutput | _Tokens] = []
        self._made: list[RequestOutput] | None = None
        self._length = 0

    def append(self, output: RequestOutput) -> None:
        """Add one output."""
        self._parts.append(output)
        self._made = None
        self._length += 1

    def add_tokens(self, requests: np.ndarray, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Add a token for each of `requests` [K]. tokens: [K]; counts: [K] tokens of their output so far."""
        if len(requests):
            self._parts.append((requests, tokens, counts))
            self._made = None
            self._length += len(requests)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[RequestOutput]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> RequestOutput: ...

    @overload
    def __getitem__(self, index: slice) -> list[RequestOutput]: ...

    def __getitem__(self, index: int | slice) -> RequestOutput | list[RequestOutput]:
        return self._all()[index]

    def _all(self) -> list[RequestOutput]:
        if self._made is None:
            self._made = []
            for part in self._parts:
                if isinstance(part, RequestOutput):
                    self._made.append(part)
                    continue
                self._made += map(_token_output, *(column.tolist() for column in part))
            # From here on the objects are what counts: whoever changes one finds it changed.
            self._parts = list(self._made)
        return self._made


def _token_output(request: Request, token: int, count: int) -> RequestOutput:
    # Only what differs from the defaults, which are the class's: this is made a thousand times a step.
    output: RequestOutput = object.__new__(RequestOutput)
    output.request_id, output.index, output.token_ids = request.id, request.index, [token]
    output.num_prompt_tokens, output.num_output_tokens = request.num_prompt, count
    return output


def last_output(
    request: Request, state: State, ids: Sequence[int], piece: str, count: int, now: float
) -> RequestOutput:
    """Return the last output of a request that has ended in `state`, and take its text from it.

    ids, piece: what the last step added. count: tokens of the output; one that is told as a whole has so many ids. now: seconds, by
    the engine's clock.
    """
    text, unread = request.text, not request.reads_text
    request.text = request.matcher = None
    if request.options.whole:
        ids = request.tokens[request.num_prompt : request.num_prompt + count].tolist()
        piece = request.piece + piece
        if text is not None and unread:
            # Nothing depended on its text, so that it is put together only now.
            ended = state is State.STOPPED and not request.params.include_stop
            piece = "".join([text.push(token) for token in (ids[:-1] if ended else ids)])
    output = RequestOutput(
        request.id,
        list(ids),
        piece + (text.flush() if text is not None else ""),
        FINISH_REASONS[state],
        request.error,
        request.num_prompt,
        count,
        request.index,
        request.stop_reason,
    )
    if request.options.whole:
        output.logprobs = request.logprobs or None
        tell_beginning(request, output)
    output.record = RequestRecord(
        request.params,
        request.options,
        request.created,
        request.entered or None,
        request.first_token or None,
        now,
        max(0, request.cached),
    )
    return output


def tell_beginning(request: Request, output: RequestOutput) -> None:
    """Put what only one output of a request tells into it."""
    output.num_cached_tokens = max(0, request.cached)
    output.queue_time = request.entered - request.created if request.entered else None
    output.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
