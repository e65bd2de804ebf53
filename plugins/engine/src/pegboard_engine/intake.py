"""What comes in: prompts and parameters, checked, made into requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import RequestOptions
from pegboard.types import SamplingParams
from pegboard_engine.request import Request
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.sampling.params import check_params, check_processors
from pegboard_engine.text import OutputText

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry


class Intake:
    """Checks against one model. longest: tokens that prompt and output can have in all."""

    def __init__(
        self, tokenizer: Tokenizer | None, registry: Registry, vocab_size: int, longest: int, max_logprobs: int
    ) -> None:
        self._tokenizer = tokenizer
        self._registry = registry
        self._vocab_size = vocab_size
        self._longest = longest
        self._max_logprobs = max_logprobs

    def prompt_ids(self, prompt: str | Sequence[int]) -> np.ndarray:
        """Return the prompt as int32 ids. Raises ConfigError for one that is empty, too long or not in the vocabulary."""
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise ConfigError("a prompt of text needs a tokenizer", fix="give token ids, or load a tokenizer")
            prompt = self._tokenizer.encode(prompt)
        tokens = np.array(prompt, dtype=np.int64)
        if not len(tokens):
            raise ConfigError("the prompt is empty", fix="give at least one token")
        wrong = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
        if len(wrong):
            raise ConfigError(
                f"token id {wrong[0]} is not in the vocabulary of {self._vocab_size}", fix="correct the ids"
            )
        if len(tokens) >= self._longest:
            raise ConfigError(
                f"the prompt has {len(tokens)} tokens; with at least one of output, {self._longest} fit",
                fix="shorten it, or raise max_model_len or kv_memory",
            )
        return tokens.astype(np.int32)

    def check(self, params: SamplingParams, options: RequestOptions, length: int) -> None:
        """Raise ConfigError for the first parameter that cannot be met."""
        check_params(params, self._vocab_size, max_logprobs=self._max_logprobs)
        if params.processors:
            check_processors(params, self._registry)
        if self._tokenizer is None:
            for name, value in (
                ("stop", params.stop),
                ("bad_words", params.bad_words),
                ("grammar", params.grammar),
            ):
                if value:
                    raise ConfigError(f"{name} needs a tokenizer", fix="load the engine with a tokenizer")
        if params.stop and not params.detokenize:
            raise ConfigError("stop texts need the text: detokenize is off", fix="turn it on, or use stop_ids")
        for name in ("deadline", "queue_timeout"):
            seconds = getattr(options, name)
            if seconds is not None and not seconds > 0:
                raise ConfigError(f"{name} is {seconds!r}", fix=f"{name} must be seconds above 0")
        if options.task == "embed" and params.n != 1:
            raise ConfigError("an embedding has one answer", fix="leave n at 1")

    def request(
        self, id: str, index: int, tokens: np.ndarray, params: SamplingParams, options: RequestOptions
    ) -> Request:
        """Return answer `index` of a request."""
        tokenizer = self._tokenizer
        eos = () if params.ignore_eos or tokenizer is None else tuple(tokenizer.eos_ids)
        ends = tuple(dict.fromkeys((*eos, *params.stop_ids)))
        embeds = options.task == "embed"
        request = Request(
            id,
            tokens,
            params,
            options,
            index=index,
            # An embedding draws no token, so that it never comes to this length.
            limit=len(tokens) + 1 if embeds else min(len(tokens) + params.max_tokens, self._longest),
            stop_ids=ends,
            end_ids=ends if params.min_tokens else (),
        )
        if params.prompt_logprobs is not None and index == 0:
            request.prompt_logprobs = [None] * len(tokens)
        if tokenizer is not None and params.detokenize and not embeds:
            stream = tokenizer.stream(skip_special=params.skip_special)
            request.text = OutputText(stream, params.stop, include_stop=params.include_stop)
        return request

    def enter(self, columns: SamplingColumns, slot: int, request: Request) -> None:
        """Tell the sampler of a request that got a slot."""
        columns.set(
            slot,
            request.params,
            seed=request.seed,
            answer=request.index,
            end_ids=request.end_ids,
            bad_words=self.bad_words(request.params),
            prompt_ids=request.tokens[: request.num_prompt],
            output_ids=request.tokens[request.num_prompt :],
        )

    def bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Return the id sequences of `bad_words`: as they begin a text, and as they follow another word."""
        if not params.bad_words or self._tokenizer is None:
            return []
        found = []
        for word in params.bad_words:
            for text in (word, " " + word.lstrip()):
                ids = list(self._tokenizer.encode(text, special=False))
                if ids and ids not in found:
                    found.append(ids)
        return found
