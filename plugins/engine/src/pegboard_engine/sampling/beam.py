"""Beam search over whatever tells the most probable next tokens of some sequences.

What is returned, and when the search ends, is as in Hugging Face's `generate(num_beams=...)` for one beam group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pegboard.errors import ConfigError

NextLogprobs = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[tuple[int, float]]]]
"""(Sequences of ids, count) -> for each its `count` most probable next ids with their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class Beam:
    """One answer. token_ids: the output, its end included. logprob: of all of them. score: logprob / length ** length_penalty."""

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """num_beams: width, and the most answers. max_tokens: longest output. end_ids: ids that end an output.

    length_penalty: exponent of the length that a sum of log-probabilities is divided by; more favours longer outputs.
    early_stopping: True ends as soon as there are num_beams answers; False when the best that runs, at its present length, is
    no better than the worst of them; "never" when it could not become better at any length.
    Raises ConfigError for a value without meaning.
    """

    num_beams: int
    max_tokens: int
    end_ids: Collection[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        for name, value in (("num_beams", self.num_beams), ("max_tokens", self.max_tokens)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}", fix=f"{name} must be an integer of at least 1")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, (int, float)):
            raise ConfigError(f"length_penalty is {self.length_penalty!r}", fix="length_penalty must be a number")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty is {self.length_penalty!r}", fix="length_penalty must be finite")
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(
                f"early_stopping is {self.early_stopping!r}", fix='early_stopping must be True, False or "never"'
            )

    @property
    def candidates(self) -> int:
        """How many continuations are looked at: enough that num_beams of them run on, whatever ends."""
        return max(2, 1 + len(set(self.end_ids))) * self.num_beams


def beam_search(
    next_logprobs: NextLogprobs, prompts: Sequence[Sequence[int]], options: BeamOptions
) -> list[list[Beam]]:
    """Return the answers to each prompt, best first. The searches go on side by side, so that their sequences are one batch."""
    searches = [_Search(options, list(prompt)) for prompt in prompts]
    while open_ones := [search for search in searches if search.running]:
        sequences = [search.prompt + list(tokens) for search in open_ones for tokens, _ in search.running]
        told = iter(next_logprobs(sequences, options.candidates))
        for search in open_ones:
            search.advance([next(told) for _ in search.running])
    return [search.found for search in searches]


class _Search:
    """One prompt. running: (output, log-probability), best first; empty when the search is over. found: best first."""

    def __init__(self, options: BeamOptions, prompt: list[int]) -> None:
        self._options = options
        self.prompt = prompt
        self.running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        self.found: list[Beam] = []

    def advance(self, told: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Go on by one token, of the candidates for each that runs."""
        options = self._options
        candidates = [
            (logprob + more, (*tokens, token))
            for (tokens, logprob), nexts in zip(self.running, told, strict=True)
            for token, more in nexts
            if more > -math.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        running = []
        for place, (logprob, tokens) in enumerate(candidates[: options.candidates]):
            ended = tokens[-1] in options.end_ids
            if not ended and len(tokens) < options.max_tokens:
                running.append((tokens, logprob))
            elif place < options.num_beams:
                # What ends further down is no answer: enough that runs is better.
                self._add(tokens, logprob, "stop" if ended else "length")
        self.running = running[: options.num_beams]
        if self._is_over():
            self.running = []

    def _add(self, tokens: tuple[int, ...], logprob: float, reason: Literal["stop", "length"]) -> None:
        options = self._options
        score = logprob / len(tokens) ** options.length_penalty
        self.found.append(Beam(tokens, logprob, score, reason))
        self.found.sort(key=lambda beam: -beam.score)
        del self.found[options.num_beams :]

    def _is_over(self) -> bool:
        options = self._options
        if not self.running:
            return True
        if len(self.found) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        tokens, logprob = self.running[0]
        longest = options.early_stopping == "never" and options.length_penalty > 0
        length = options.max_tokens if longest else len(tokens)
        return logprob / length**options.length_penalty <= self.found[-1].score
