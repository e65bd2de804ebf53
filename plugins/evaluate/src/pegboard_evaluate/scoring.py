"""Log-probabilities of given continuations, through the engine: batched, with shared beginnings computed once where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pegboard.errors import ModelError
from pegboard.types import SamplingParams

if TYPE_CHECKING:
    from pegboard.interfaces.engine import TokenLogprobs
    from pegboard_engine.llm import LLM, Generation

TOGETHER = 256
"""Requests that are given to the engine at once: it batches them itself, and what all of them tell must fit into memory."""

T = TypeVar("T")

Pair = tuple[Sequence[int], Sequence[int]]
"""(context, continuation) as token ids; a context has a token at least."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Of a continuation: the sum of its tokens' log-probabilities in nats, and whether each of them was the most probable one."""

    logprob: float
    greedy: bool
    tokens: int


def score(llm: LLM, pairs: Sequence[Pair], done: Callable[[int], None] = lambda count: None) -> list[Scored]:
    """Return what the model thinks of each continuation after its context. A context that is too long loses its beginning.

    Continuations of a single token after the same context (the letters of multiple choice, say) are one request. done: told how
    many more pairs are scored.
    """
    longest = llm.engine.max_model_len
    found: dict[int, Scored] = {}
    letters: dict[tuple[int, ...], list[int]] = {}
    longer: list[int] = []
    for index, (context, continuation) in enumerate(pairs):
        if not continuation:
            found[index] = Scored(0.0, True, 0)
        elif len(continuation) == 1:
            letters.setdefault(tuple(context[-(longest - 1) :]), []).append(index)
        else:
            longer.append(index)
    done(len(found))
    for group in groups(list(letters.items())):
        found |= _letters(llm, pairs, group, done)
    for indices in groups(longer):
        found |= _longer(llm, pairs, indices, longest, done)
    return [found[index] for index in range(len(pairs))]


def groups(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items in groups that the engine is given at once."""
    return (items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER))


def answered(generation: Generation) -> Generation:
    """Return a generation. Raises ModelError when its request failed."""
    (answer,) = generation.outputs
    if answer.finish_reason == "error":
        raise ModelError(f"the engine failed at a request: {answer.error}", fix="look at the log above")
    return generation


def _first(generation: Generation) -> TokenLogprobs:
    """Return what is told of the first token of an answer."""
    told = answered(generation).outputs[0].logprobs
    if not told:
        raise ModelError("the engine told no log-probability", fix="look at the log above")
    return told[0]


def _letters(
    llm: LLM,
    pairs: Sequence[Pair],
    group: Sequence[tuple[tuple[int, ...], list[int]]],
    done: Callable[[int], None],
) -> dict[int, Scored]:
    """Score single tokens: the log-probabilities of ids at one position."""
    wanted = [tuple(dict.fromkeys(pairs[index][1][0] for index in indices)) for _, indices in group]
    params = [
        SamplingParams(max_tokens=1, temperature=0, logprobs=0, logprob_ids=ids, ignore_eos=True, detokenize=False)
        for ids in wanted
    ]
    found = {}
    for (_, indices), generation in zip(group, llm.generate([list(c) for c, _ in group], params), strict=True):
        entry = _first(generation)
        told = dict(entry.extra)
        for index in indices:
            token = pairs[index][1][0]
            found[index] = Scored(told[token], token == entry.token_id, 1)
        done(len(indices))
    return found


def _longer(
    llm: LLM, pairs: Sequence[Pair], indices: Sequence[int], longest: int, done: Callable[[int], None]
) -> dict[int, Scored]:
    """Score continuations of several tokens: all but the last are tokens of the prompt, the last is at the position after it."""
    prompts, params = [], []
    for index in indices:
        context, continuation = pairs[index]
        tokens = [*context, *continuation][-longest:]
        prompts.append(tokens[:-1])
        params.append(
            SamplingParams(
                max_tokens=1,
                temperature=0,
                logprobs=0,
                logprob_ids=(tokens[-1],),
                prompt_logprobs=0,
                # What lies before is computed once for all continuations of a context.
                prompt_logprobs_start=max(len(tokens) - len(continuation), 1),
                ignore_eos=True,
                detokenize=False,
            )
        )
    found = {}
    for index, generation in zip(indices, llm.generate(prompts, params), strict=True):
        last = _first(generation)
        entries = generation.prompt_logprobs or ()
        wanted = pairs[index][1]
        # The first token of a prompt has no log-probability; a continuation longer than the context has fewer entries.
        told = [entry for entry in entries[-(len(wanted) - 1) :] if entry is not None]
        ((token, logprob),) = last.extra
        found[index] = Scored(
            logprob + sum(entry.logprob for entry in told),
            last.token_id == token and all(entry.rank == 1 for entry in told),
            len(told) + 1,
        )
    done(len(indices))
    return found
