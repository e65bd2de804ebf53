"""What a collected step means for each request: its token, its text, its grammar, and its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pegboard.interfaces.engine import RequestOutput, TokenLogprobs
from pegboard.types import StepResult
from pegboard_engine.outputs import StepOutputs, tell_beginning
from pegboard_engine.proposals import Proposals
from pegboard_engine.request import Request, State
from pegboard_engine.results import by_row, read_embeddings, read_prompts
from pegboard_engine.scheduler import Progress, Schedule, Scheduler


class Ends(Protocol):
    """How a request ends: all that it holds is freed."""

    def end(
        self, request: Request, state: State, ids: Sequence[int] = (), piece: str = "", count: int | None = None
    ) -> RequestOutput:
        """Move a request to a terminal state and return its last output. count: tokens of its output, if not all that are known."""

    def blame(self, request: Request, what: str, error: Exception) -> RequestOutput:
        """End the one request that an exception belongs to."""


class Reader:
    """Reads the results of steps. Owns nothing: tokens are the scheduler's, texts and grammars their requests'."""

    def __init__(
        self, scheduler: Scheduler, ends: Ends, proposals: Proposals | None, clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._table = scheduler.table
        self._ends = ends
        self._proposals = proposals
        self._clock = clock

    def read(self, schedule: Schedule, result: StepResult, outputs: StepOutputs) -> int:
        """Give each request its token, end those that came to their end, and tell both to `outputs`. Returns the number of tokens."""
        table = self._table
        progress = self._scheduler.collect(schedule, result.token_ids, result.extras.get("accepted"))
        if "prompt" in result.extras:
            read_prompts(schedule, table, result.extras["prompt"])
        slots = progress.slots
        # Most rows of a step only add a token: nothing is looked up for them but what their output tells.
        special = progress.stopped | progress.full | table.watched[slots] | ~result.extras["valid"][progress.rows]
        special |= progress.counts == 1
        if progress.runs is not None and schedule.drafts is not None and self._proposals is not None:
            special[:] = True
            self._proposals.count(schedule.drafts, progress.runs)
        plain = ~(special | table.whole[slots])
        outputs.add_tokens(table.requests[slots[plain]], progress.tokens[plain], progress.counts[plain])
        if special.any():
            logprobs = by_row(result.extras["logprobs"]) if "logprobs" in result.extras else {}
            for index in np.flatnonzero(special).tolist():
                output = self._read_one(progress, index, result, logprobs)
                if output is not None:
                    outputs.append(output)
        if "pooled" in result.extras:
            for request in read_embeddings(schedule, table, result.extras["pooled"]):
                outputs.append(self._embedded(request))
        return len(slots) if progress.runs is None else sum(map(len, progress.runs))

    def _read_one(
        self, progress: Progress, index: int, result: StepResult, logprobs: dict[int, TokenLogprobs]
    ) -> RequestOutput | None:
        """Give one request its tokens, with its text, its grammar and its end; return what it is told now."""
        row = int(progress.rows[index])
        request = self._table.request(int(progress.slots[index]))
        tokens = [int(progress.tokens[index])] if progress.runs is None else progress.runs[index]
        before = int(progress.counts[index]) - len(tokens)
        if not result.extras["valid"][row]:
            return self._invalid(request, before, result.extras.get("errors", {}).get(row))
        state, piece, taken = None, "", 0
        for taken, token in enumerate(tokens, 1):
            if taken == len(tokens) and (progress.stopped[index] or progress.full[index]):
                state = State.STOPPED if progress.stopped[index] else State.LENGTH
            if request.reads_text or request.matcher is not None:
                try:
                    state, more = _follow(request, token, before + taken, state)
                except Exception as error:
                    return self._ends.blame(request, "reading its output", error)
                piece += more
            if state is not None:
                break
        count, tokens = before + taken, tokens[:taken]
        first_row = row + 1 - (1 if progress.runs is None else len(progress.runs[index]))
        told = [logprobs[place] for place in range(first_row, first_row + taken) if place in logprobs]
        if before == 0:
            request.first_token = request.first_token or self._clock()
        whole = request.options.whole
        if whole:
            request.logprobs += told
        if state is not None:
            if state is State.STOPPED and request.stop_reason is None and tokens[-1] in request.params.stop_ids:
                request.stop_reason = tokens[-1]
            output = self._ends.end(request, state, tokens, piece, count)
        elif whole:
            request.piece += piece
            return None
        else:
            output = RequestOutput(request.id, tokens, piece, None, None, request.num_prompt, count, request.index)
        if not whole:
            output.logprobs = told or None
            if before == 0:
                tell_beginning(request, output)
        return output

    def _invalid(self, request: Request, count: int, error: str | None) -> RequestOutput:
        """End a request of which no token could be drawn after `count`."""
        limited = request.matcher is not None or request.params.allowed_ids is not None
        request.error = error or (
            "no token is left that its grammar and its allowed ids let come"
            if limited
            else "the model's logits are not finite"
        )
        output = self._ends.end(request, State.FAILED, count=count)
        output.rejected = limited
        return output

    def _embedded(self, request: Request) -> RequestOutput:
        """End a request whose embedding is complete."""
        request.first_token = request.first_token or self._clock()
        output = self._ends.end(request, State.STOPPED)
        output.embedding = request.pooled.tolist()
        if not request.options.whole:
            tell_beginning(request, output)
        return output


def _follow(request: Request, token: int, count: int, state: State | None) -> tuple[State | None, str]:
    """Advance the grammar and the text of a request by a token; return the state it leads to and the text that is certain."""
    ended, piece = state is State.STOPPED, ""
    if request.matcher is not None and not ended and not request.matcher.accept(token):
        request.error = f"token {token} does not follow the grammar"
        return State.FAILED, ""
    text, params = request.text, request.params
    if text is not None and request.reads_text and (not ended or params.include_stop):
        piece = text.push(token, may_stop=count >= params.min_tokens)
        if text.stopped_by is not None:
            request.stop_reason, state = text.stopped_by, State.STOPPED
    return state, piece
