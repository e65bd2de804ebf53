"""What is no meaning is refused by name, and everything else passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pegboard.errors import ConfigError
from pegboard.types import GrammarSpec, SamplingParams
from pegboard_engine.sampling.params import check_params

VOCAB = 100
NAN, INF = float("nan"), float("inf")

WRONG: list[tuple[str, Any]] = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("min_tokens", -1),
    ("min_tokens", 129),
    ("n", 0),
    ("n", 129),
    ("temperature", -0.1),
    ("temperature", NAN),
    ("temperature", INF),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 2.0),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", NAN),
    ("typical_p", 0.0),
    ("typical_p", 2),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", INF),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 1.0),
    ("stop", ("",)),
    ("stop", "text"),
    ("bad_words", ("fine", "")),
    ("stop_ids", (VOCAB,)),
    ("stop_ids", (-1,)),
    ("logprob_ids", (VOCAB,)),
    ("logit_bias", {VOCAB: 1.0}),
    ("logit_bias", {"5": 1.0}),
    ("logit_bias", [5]),
    ("logit_bias[5]", {5: NAN}),
    ("logit_bias[5]", {4: 1, 5: 100.5}),
    ("allowed_ids", ()),
    ("allowed_ids", (1, VOCAB)),
    ("logprobs", 21),
    ("logprobs", -1),
    ("prompt_logprobs", -1),
    ("grammar", "regex"),
    ("processors", ("name",)),
    ("processors", (("name", None),)),
    ("processors", (("", {}),)),
    ("ignore_eos", 1),
    ("detokenize", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_the_wrong_one_is_named(name: str, value: Any) -> None:
    field = name.partition("[")[0]
    with pytest.raises(ConfigError) as caught:
        check_params(SamplingParams(**{field: value}), VOCAB)
    assert caught.value.message.startswith(f"{name} is ")
    assert caught.value.fix is not None and name in caught.value.fix
    assert len(caught.value.message) < 120


RIGHT: list[Mapping[str, Any]] = [
    {},
    {"max_tokens": 1, "min_tokens": 1, "n": 128, "temperature": 0, "top_k": 10**6, "top_p": 1, "min_p": 1},
    {"temperature": 1e300, "top_p": 1e-300, "typical_p": 0.5, "repetition_penalty": 0.1, "seed": 2**63 - 1},
    {"presence_penalty": 2, "frequency_penalty": -2.0, "stop": ["a"], "stop_ids": [0, VOCAB - 1], "ignore_eos": True},
    {"logit_bias": {0: -100, 99: 100.0}, "allowed_ids": (3, 3), "bad_words": ["x y"], "logprobs": 20},
    {"prompt_logprobs": 0, "logprob_ids": (1,), "grammar": GrammarSpec("regex", "a*"), "processors": [("x", {})]},
]


@pytest.mark.parametrize("fields", RIGHT, ids=str)
def test_what_has_a_meaning_passes(fields: Mapping[str, Any]) -> None:
    check_params(SamplingParams(**fields), VOCAB)


def test_bounds_of_logprobs_are_the_engines() -> None:
    check_params(SamplingParams(logprobs=50), VOCAB, max_logprobs=50)
    check_params(SamplingParams(logprobs=-1, prompt_logprobs=-1), VOCAB, whole_vocabulary=True)
    with pytest.raises(ConfigError, match="logprobs is 6"):
        check_params(SamplingParams(logprobs=6), VOCAB, max_logprobs=5, whole_vocabulary=True)


def test_the_first_wrong_one_is_named() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        check_params(SamplingParams(temperature=-1, top_p=-1), VOCAB)


def test_long_values_are_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        check_params(SamplingParams(stop_ids=tuple(range(10_000))), VOCAB)
    assert len(caught.value.message) < 120
