"""Where rows of a step lie: those of sequences with proposed tokens, and those that prompts and embeddings ask for beside them."""

from __future__ import annotations

import numpy as np

from pegboard_engine.request import Request


def first_rows(drafts: np.ndarray) -> np.ndarray:
    """Return the first row [M] of each sequence, where one with d of `drafts` proposed tokens has d + 1 rows, end to end."""
    lengths = drafts + 1
    return lengths.cumsum() - lengths


def spread(slots: np.ndarray, firsts: np.ndarray, drafts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for every row its sequence's slot, and a number that counts up from its sequence's one of `firsts`."""
    lengths = drafts + 1
    places = np.arange(lengths.sum()) - np.repeat(first_rows(drafts), lengths)
    return np.repeat(slots, lengths), np.repeat(firsts, lengths) + places


def told_places(request: Request, begin: int, count: int) -> range:
    """Return those of the tokens begin … begin + count - 1 whose logits tell the log-probability of a prompt token, the next one."""
    if request.prompt_logprobs is None:
        return range(begin, begin)
    first = max(begin, request.params.prompt_logprobs_start - 1)
    return range(first, max(first, min(begin + count, request.num_prompt - 1)))


def pooled_rows(request: Request, begin: int, count: int) -> np.ndarray:
    """Return which of the tokens begin … begin + count - 1 count for an embedding, from 0."""
    if request.options.pooling == "mean":
        return np.arange(count)
    return np.arange(count - 1, count) if begin + count == request.num_prompt else np.arange(0)
