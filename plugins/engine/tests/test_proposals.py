"""Speculation in the engine: whatever is proposed, the tokens are those that come without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pegboard.build import BuiltModel
from pegboard.interfaces.speculator import Speculator
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_engine.rows import spread
from pegboard_sdk.toys.tokenizer import TinyTokenizer

PROMPTS = [[1, 2, 3], [7] * 9, [5, 6, 5, 6, 5]]


class Told(Speculator):
    """Proposes what a test tells it: the continuation by sequence of tokens, some of it spoiled."""

    most = 3
    continuations: dict[tuple[int, ...], list[int]] = {}  # noqa: RUF012  # the registry makes the instance
    seen: list[Any] = []  # noqa: RUF012
    spoil = 0

    def load(self, built: object, tokenizer: object, registry: object) -> None:
        self.seen.clear()

    def propose(self, keys: Sequence[int], tokens: Sequence[Sequence[int]], most: Sequence[int]) -> list[Sequence[int]]:
        if self.spoil < 0:
            raise RuntimeError("no guess")
        self.seen.append(("propose", tuple(keys)))
        found: list[Sequence[int]] = []
        for row, count in zip(tokens, most, strict=True):
            held = [int(token) for token in row]
            whole = next((w for p, c in self.continuations.items() if (w := [*p, *c])[: len(held)] == held), held)
            ids = whole[len(held) : len(held) + count]
            if self.spoil and len(held) % self.spoil == 0 and ids:
                ids[-1] = (ids[-1] + 1) % 200
            found.append(ids)
        return found

    def forget(self, keys: Sequence[int]) -> None:
        self.seen.append(("forget", tuple(keys)))


@pytest.fixture
def engines(built: BuiltModel) -> Callable[[bool], PagedEngine]:
    told = PluginSpec(kind="speculator", target=f"{__name__}:Told")
    registry = Registry.of({("executor", "uniproc"): UNIPROC, ("speculator", "told"): told})

    def make(speculating: bool) -> PagedEngine:
        options = EngineOptions(page_size=4, max_model_len=64, speculator="told" if speculating else None)
        engine = PagedEngine(options)
        engine.load(built, TinyTokenizer(), registry)
        return engine

    return make


def run(engine: PagedEngine, params: SamplingParams) -> tuple[list[dict[str, Any]], int]:
    joined = [{"ids": [], "text": "", "logprobs": []} for _ in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        engine.add_request(str(number), prompt, params)
    while engine.has_unfinished():
        for output in engine.step():
            one = joined[int(output.request_id)]
            one["ids"] += output.token_ids
            one["text"] += output.text
            one["logprobs"] += [round(entry.logprob, 6) for entry in output.logprobs or ()]
            one["end"] = (output.finish_reason, output.stop_reason, output.num_output_tokens)
            assert not output.logprobs or len(output.logprobs) == len(output.token_ids)
    assert engine.num_held_pages == 0
    return joined, engine.stats().steps


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.1, "top_p": 0.9, "seed": 3},
        {"temperature": 0.7, "seed": 5, "presence_penalty": 0.8, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
        {"temperature": 0, "logprobs": 2},
        {"temperature": 0.9, "seed": 1, "min_tokens": 5, "stop_ids": tuple(range(0, 250, 3))},
    ],
    ids=str,
)
@pytest.mark.parametrize("spoil", [0, 2])
def test_the_tokens_are_those_that_come_without(
    engines: Callable[[bool], PagedEngine], params: dict[str, Any], spoil: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = SamplingParams(**{"max_tokens": 14, "ignore_eos": True, **params})
    plain, steps = run(engines(False), wanted)
    continuations = {tuple(p): one["ids"] for p, one in zip(PROMPTS, plain, strict=True)}
    monkeypatch.setattr(Told, "continuations", continuations)
    monkeypatch.setattr(Told, "spoil", spoil)
    engine = engines(True)
    found, fewer = run(engine, wanted)
    assert found == plain
    stats = engine.stats()
    if "stop_ids" not in params:
        assert fewer < steps
        assert 0 < stats.accepted <= stats.proposed
        assert (stats.accepted == stats.proposed) == (spoil == 0)
    assert {key for what, keys in Told.seen if what == "forget" for key in keys} == {1, 2, 3}


def test_a_stop_text_inside_a_proposal_ends_the_answer_there(
    engines: Callable[[bool], PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = run(engines(False), SamplingParams(max_tokens=14, temperature=0, ignore_eos=True))
    continuations = {tuple(p): one["ids"] for p, one in zip(PROMPTS, plain, strict=True)}
    monkeypatch.setattr(Told, "continuations", continuations)
    stop = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True, stop=(plain[0]["text"][3:5],))
    assert run(engines(True), stop)[0] == run(engines(False), stop)[0]


def test_a_speculator_that_raises_is_not_asked_again(
    engines: Callable[[bool], PagedEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    plain, _ = run(engines(False), params)
    monkeypatch.setattr(Told, "spoil", -1)
    assert run(engines(True), params)[0] == plain
    assert caplog.text.count("the speculator failed") == 1


def test_each_row_has_its_slot_and_its_place() -> None:
    slots, positions = spread(np.array([4, 7]), np.array([10, 20]), np.array([2, 0]))
    assert slots.tolist() == [4, 4, 4, 7]
    assert positions.tolist() == [10, 11, 12, 20]
