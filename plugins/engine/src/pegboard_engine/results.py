"""From what a step tells beside tokens to what requests are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pegboard.interfaces.engine import TokenLogprobs
from pegboard_engine.request import Request
from pegboard_engine.rows import pooled_rows, told_places
from pegboard_engine.sampling.logprobs import Logprobs
from pegboard_engine.scheduler import Schedule
from pegboard_engine.table import Table


def by_row(logprobs: Logprobs) -> dict[int, TokenLogprobs]:
    """Return the log-probabilities of the rows that asked for them."""
    return dict(zip(logprobs.rows.tolist(), logprobs.tokens(), strict=True))


def read_prompts(step: Schedule, table: Table, parts: Sequence[Logprobs]) -> None:
    """Give requests the log-probabilities of the prompt tokens that a step computed, `parts` in the order of its rows."""
    entries = [entry for part in parts for entry in part.tokens()]
    start = 0
    for request, begin, count, alive in _prefills(step, table):
        places = told_places(request, begin, count)
        if alive and request.prompt_logprobs is not None:
            most = request.params.prompt_logprobs or 0
            for index, place in enumerate(places, start):
                entry = entries[index]
                kept = entry.top if most < 0 else entry.top[:most]
                request.prompt_logprobs[place + 1] = TokenLogprobs(entry.token_id, entry.logprob, entry.rank, kept)
        start += len(places)


def read_embeddings(step: Schedule, table: Table, pooled: np.ndarray) -> Iterator[Request]:
    """Add a step's sums [J, H] to the embeddings they belong to; yield the requests whose embedding is complete."""
    index = 0
    for request, begin, count, alive in _prefills(step, table):
        if not request.embeds or not len(pooled_rows(request, begin, count)):
            continue
        if alive:
            mean = request.options.pooling == "mean"
            part = pooled[index] / (request.num_prompt if mean else 1)
            request.pooled = part if request.pooled is None else request.pooled + part
            if begin + count == request.num_prompt:
                yield request
        index += 1


def _prefills(step: Schedule, table: Table) -> Iterator[tuple[Request, int, int, bool]]:
    """Yield (request, first token, tokens, whether it still runs) of the sequences behind the decodes."""
    for index, request in enumerate(step.prefills, step.num_decodes):
        alive = table.generation[step.slots[index]] == step.generations[index]
        yield request, int(step.begins[index]), int(step.counts[index]), bool(alive)
