"""What a request may ask of sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError
from pegboard.types import GrammarSpec, SamplingParams

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

MOST_ANSWERS = 128
MOST_BIAS = 100.0

Check = tuple[str, Any, bool, str]
"""Name, value, whether it is legal, what is."""


def check_params(
    params: SamplingParams, vocab_size: int, *, max_logprobs: int = 20, whole_vocabulary: bool = False
) -> None:
    """Raise ConfigError naming the first parameter that has no meaning for ids below `vocab_size`.

    max_logprobs: most log-probabilities that one position may ask for. whole_vocabulary: whether -1 may ask for all.
    """
    checks = _checks(params, vocab_size, max_logprobs, whole_vocabulary)
    for name, value, legal, expected in checks:
        if not legal:
            raise ConfigError(f"{name} is {_short(value)}", fix=f"{name} must be {expected}")


def check_processors(params: SamplingParams, registry: Registry) -> None:
    """Raise PluginError or ConfigError when a logits processor is not installed or its options are wrong."""
    from pegboard_engine.sampling.processors import load_processor

    for name, options in params.processors:
        load_processor(registry, name)[1](options)


def _checks(p: SamplingParams, vocab: int, most: int, whole: bool) -> Iterator[Check]:
    """Yield the checks one by one: a later one may rely on those before it."""
    yield "max_tokens", p.max_tokens, _int(p.max_tokens, 1), "an integer of at least 1"
    yield "min_tokens", p.min_tokens, _int(p.min_tokens, 0, p.max_tokens), "an integer from 0 to max_tokens"
    yield "n", p.n, _int(p.n, 1, MOST_ANSWERS), f"an integer from 1 to {MOST_ANSWERS}"
    yield "temperature", p.temperature, _real(p.temperature, 0), "0 (greedy) or above"
    yield "top_k", p.top_k, _int(p.top_k, 0), "0 (off) or an integer above"
    for name in ("top_p", "typical_p"):
        value = getattr(p, name)
        yield name, value, _real(value, 0, 1) and value > 0, "above 0 and at most 1"
    yield "min_p", p.min_p, _real(p.min_p, 0, 1), "between 0 and 1"
    penalty = p.repetition_penalty
    yield "repetition_penalty", penalty, _real(penalty, 0) and penalty > 0, "above 0"
    for name in ("presence_penalty", "frequency_penalty"):
        yield name, getattr(p, name), _real(getattr(p, name), -2, 2), "between -2 and 2"
    yield "seed", p.seed, p.seed is None or _int(p.seed, 0, 2**63 - 1), "None or an integer from 0 to 2**63 - 1"
    for name in ("stop", "bad_words"):
        yield name, getattr(p, name), _texts(getattr(p, name)), "a sequence of texts that are not empty"
    for name in ("stop_ids", "logprob_ids"):
        yield name, getattr(p, name), _ids(getattr(p, name), vocab), f"ids from 0 to {vocab - 1}"
    bias = p.logit_bias
    yield (
        "logit_bias",
        bias,
        isinstance(bias, Mapping) and _ids(tuple(bias), vocab),
        f"ids from 0 to {vocab - 1}, each with a value",
    )
    for token, value in bias.items():
        legal = _real(value, -MOST_BIAS, MOST_BIAS)
        yield f"logit_bias[{token}]", value, legal, f"between -{MOST_BIAS:g} and {MOST_BIAS:g}"
    allowed = p.allowed_ids
    legal = allowed is None or (_ids(allowed, vocab) and len(allowed) > 0)
    yield "allowed_ids", allowed, legal, f"None or at least one id from 0 to {vocab - 1}"
    expected = f"None or an integer from 0 to {most}" + (", or -1 for all ids" if whole else "")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(p, name)
        yield name, value, value is None or _int(value, 0, most) or (whole and value == -1), expected
    start = p.prompt_logprobs_start
    yield "prompt_logprobs_start", start, _int(start, 0), "an integer of at least 0"
    yield "grammar", p.grammar, p.grammar is None or isinstance(p.grammar, GrammarSpec), "None or a GrammarSpec"
    legal = isinstance(p.processors, (tuple, list)) and all(_processor(item) for item in p.processors)
    yield "processors", p.processors, legal, "pairs of the name of a logits processor and a mapping of its options"
    for name in ("ignore_eos", "include_stop", "skip_special", "detokenize"):
        yield name, getattr(p, name), isinstance(getattr(p, name), bool), "True or False"


def _int(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _real(value: Any, least: float, most: float = math.inf) -> bool:
    """Whether it is a finite number between both."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return least <= value <= most and value < math.inf


def _texts(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(text, str) and text for text in value)


def _ids(value: Any, vocab: int) -> bool:
    return isinstance(value, (tuple, list)) and all(_int(token, 0, vocab - 1) for token in value)


def _processor(item: Any) -> bool:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    return isinstance(item[0], str) and bool(item[0]) and isinstance(item[1], Mapping)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
