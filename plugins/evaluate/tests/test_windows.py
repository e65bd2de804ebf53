from __future__ import annotations

import math

import pytest

from pegboard_evaluate.perplexity import Perplexity, windows


@pytest.mark.parametrize("prefix", [None, 99])
@pytest.mark.parametrize(("length", "stride"), [(4, 3), (4, 1), (8, 5), (2, 1), (100, 99)])
@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_every_token_is_scored_once_with_what_context_fits(
    prefix: int | None, length: int, stride: int, count: int
) -> None:
    tokens = list(range(count))
    whole = [*([] if prefix is None else [prefix]), *tokens]
    scored = []
    for context, continuation in windows(tokens, prefix, length, stride):
        assert 1 <= len(context) and len(context) + len(continuation) <= length
        start = whole.index(continuation[0])
        assert whole[start - len(context) : start + len(continuation)] == [*context, *continuation]
        # Nothing that would have fitted is left out.
        assert start == len(context) or len(context) + len(continuation) == length
        assert len(continuation) <= stride
        scored += continuation
    assert scored == whole[1:]


def test_figures_follow_from_nats() -> None:
    found = Perplexity(nats=20 * math.log(2), tokens=10, words=5, bytes=40).figures()
    assert found == {
        "perplexity": pytest.approx(4),
        "word_perplexity": pytest.approx(16),
        "bits_per_byte": pytest.approx(0.5),
        "tokens": 10,
    }
    assert Perplexity(nats=1e6, tokens=10**6, words=1, bytes=1).figures()["word_perplexity"] == math.inf
