"""Models whose sequences have other keys beyond a limit (LongRoPE): what grows over it is computed anew, and only its like shares it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.types import SamplingParams
from pegboard_engine import PagedEngine
from pegboard_sdk.toys.model import TINY, logits, random_model

Start = Callable[..., PagedEngine]
LIMIT = 12
CONFIG: dict[str, Any] = {
    **TINY,
    "original_max_position_embeddings": LIMIT,
    "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 9.0]},
}
# One below the limit to its end, two that grow over it, one that ends with its first token beyond, one that is beyond.
PROMPTS, COUNTS = (3, 6, 12, 12, 25), (5, 14, 8, 1, 6)


@pytest.fixture(scope="module")
def model() -> BuiltModel:
    return random_model(config=CONFIG, phase="decode", seed=3)


def prompts() -> list[list[int]]:
    source = random.Random(1)
    return [[source.randrange(256) for _ in range(length)] for length in PROMPTS]


def whole(model: BuiltModel, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, each from one forward pass over everything before it."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(logits(model, torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def tokens_of(engine: PagedEngine, asked: list[tuple[list[int], int]]) -> list[list[int]]:
    for number, (prompt, count) in enumerate(asked):
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        engine.add_request(str(number), prompt, params)
    found: dict[str, list[int]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.token_ids)
    assert engine.num_held_pages == 0
    return [found[str(number)] for number in range(len(asked))]


@pytest.mark.parametrize(
    "options", [{}, {"max_num_tokens": 5, "max_num_seqs": 3}, {"max_num_seqs": 1}, {"page_size": 1}], ids=str
)
def test_any_schedule_gives_the_tokens_of_whole_passes(
    start: Start, model: BuiltModel, options: dict[str, Any]
) -> None:
    asked = list(zip(prompts(), COUNTS, strict=True))
    wanted = [whole(model, prompt, count) for prompt, count in asked]
    engine = start(model=model, **options)
    assert tokens_of(engine, asked) == wanted
    assert tokens_of(engine, asked) == wanted  # with what the first round left in the cache
    assert engine.stats().preemptions == 0


def test_pages_are_found_by_sequences_of_the_same_kind_only(start: Start, model: BuiltModel) -> None:
    engine, prompt = start(model=model), prompts()[4]

    def hits(length: int) -> int:
        before = engine.stats().prefix_hits
        assert tokens_of(engine, [(prompt[:length], 1)]) == [whole(model, prompt[:length], 1)]
        return engine.stats().prefix_hits - before

    assert hits(10) == 0
    assert hits(11) == 8
    assert hits(25) == 0
    assert hits(20) == 19
    assert hits(9) == 8


def test_new_weights_keep_the_kinds_apart(start: Start, model: BuiltModel) -> None:
    engine, prompt = start(model=model), prompts()[4]
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    engine.add_request("long", prompt, params)
    for _ in range(3):
        engine.step()
    engine.update_weights(1)
    while engine.has_unfinished():
        engine.step()
    for length in (25, 8):
        assert tokens_of(engine, [(prompt[:length], 4)]) == [whole(model, prompt[:length], 4)]
