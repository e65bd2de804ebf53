"""How requests end: deadlines, grammars, death of the executor. Whatever happens, nothing is held afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.engine import RequestOptions, RequestOutput
from pegboard.interfaces.executor import ExecutorDied
from pegboard.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarMatcher
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import GrammarSpec, SamplingParams, StepPlan, StepResult
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.executor import UniprocExecutor
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.toys.model import logits, random_model
from pegboard_sdk.toys.tokenizer import EOS, TinyTokenizer


class Spelled(GrammarBackend):
    """The grammar "choice": one of the texts. A text that begins with "!" does what it says."""

    go = threading.Event()
    """What "!slow" waits for."""

    def load(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.words = tokenizer, -(-vocab_size // 32)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        if spec.value == "!slow":
            self.go.wait()
        if spec.value == "!wrong":
            raise DataError("there is no such thing", fix="ask for another")
        if spec.value == "!broken":
            raise RuntimeError("internal")
        return Texts(self, [] if spec.value.startswith("!") else json.loads(spec.value), spec.value)


class Texts(CompiledGrammar):
    def __init__(self, backend: Spelled, texts: list[str], what: str) -> None:
        self.backend, self.texts, self.what = backend, [list(text.encode()) for text in texts], what

    def matcher(self) -> GrammarMatcher:
        return Spelling(self)


class Spelling(GrammarMatcher):
    def __init__(self, grammar: Texts) -> None:
        self.grammar, self.so_far = grammar, list[int]()

    def next(self) -> set[int]:
        size = len(self.so_far)
        fits = [text for text in self.grammar.texts if text[:size] == self.so_far]
        return {text[size] if len(text) > size else EOS for text in fits}

    def fill(self, mask: np.ndarray) -> None:
        if self.grammar.what == "!raises":
            raise ValueError("in fill")
        mask[:] = -1 if self.grammar.what == "!deaf" else 0
        for token in self.next():
            mask.view(np.uint32)[token // 32] |= np.uint32(1) << np.uint32(token % 32)

    def accept(self, token_id: int) -> bool:
        if token_id not in self.next():
            return False
        self.so_far.append(token_id)
        return True

    @property
    def finished(self) -> bool:
        return self.next() == {EOS}

    def rollback(self, count: int) -> None:
        del self.so_far[len(self.so_far) - count :]


class TwoDeep(UniprocExecutor):
    """Computes at once, but lets two steps be in flight."""

    def load(self, *args: Any) -> None:
        super().load(*args)
        self.depth = 2


class Mortal(TwoDeep):
    """Dies when told to, at the next step or at the next result."""

    dies_at = ""
    failures = 0

    def submit(self, plan: StepPlan) -> int:
        if self.dies_at == "submit":
            raise ExecutorDied("killed by signal 9")
        return super().submit(plan)

    def collect(self, handle: int) -> StepResult:
        if self.dies_at == "collect":
            raise ExecutorDied("killed by signal 9")
        return super().collect(handle)

    def restart(self) -> None:
        self._flying.clear()
        type(self).failures -= 1
        if self.failures >= 0:
            raise ExecutorDied("it does not start")
        type(self).dies_at = ""


SPECS = {
    ("executor", "uniproc"): UNIPROC,
    ("executor", "two"): PluginSpec(kind="executor", target=f"{__name__}:TwoDeep"),
    ("executor", "mortal"): PluginSpec(kind="executor", target=f"{__name__}:Mortal"),
    ("grammar", "spelled"): PluginSpec(kind="grammar", target=f"{__name__}:Spelled"),
}
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(built: BuiltModel, clock: Clock) -> Iterator[Callable[..., PagedEngine]]:
    made = []

    def make(model: BuiltModel | None = None, **options: Any) -> PagedEngine:
        engine = PagedEngine(EngineOptions(**{"page_size": 4, "max_model_len": 64, **options}), clock=clock)
        engine.load(model or built, TinyTokenizer(), Registry.of(SPECS))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        assert engine.num_held_pages == 0 or engine.has_unfinished()
        engine.close()
        assert engine.num_held_pages == 0


def run(engine: PagedEngine) -> dict[str, RequestOutput]:
    """Step to the end; return the last output of each request with all its ids and text."""
    joined: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        for output in engine.step():
            last = joined.get(output.request_id)
            if last is not None:
                output.token_ids, output.text = last.token_ids + output.token_ids, last.text + output.text
            joined[output.request_id] = output
    assert engine.num_held_pages == 0
    return joined


def whole(built: BuiltModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(logits(built, torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def spelled(value: str, **params: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "temperature": 0, "grammar": GrammarSpec("choice", value), **params})


@pytest.mark.parametrize("options", [{}, {"kv_memory": 9000}, {"max_num_tokens": 6, "max_num_seqs": 2}], ids=str)
def test_two_steps_in_flight_give_the_same_tokens(
    start: Callable[..., PagedEngine], built: BuiltModel, options: dict[str, Any]
) -> None:
    if "kv_memory" in options:
        page = start().memory.layout.page_bytes
        options = {"kv_memory": page * 12, "max_model_len": 40}
    prompts = [[n] * length for n, length in enumerate((3, 9, 17, 1, 6), 1)]
    engine = start(executor="two", **options)
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, SamplingParams(max_tokens=8 + number, **GREEDY))
    outputs = run(engine)
    for number, prompt in enumerate(prompts):
        assert outputs[str(number)].token_ids == whole(built, prompt, 8 + number)
    assert ("kv_memory" in options) == (engine.stats().preemptions > 0)


def test_a_deadline_ends_a_request_wherever_it_is(start: Callable[..., PagedEngine], clock: Clock) -> None:
    engine = start(max_num_seqs=1)
    for name, seconds in (("runs", 5.0), ("waits", 3.0), ("later", None)):
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=30, **GREEDY), RequestOptions(deadline=seconds))
    assert [output.request_id for output in engine.step()] == ["runs"]
    clock.now += 4
    ended = [output for output in engine.step() if output.finish_reason]
    assert [(output.request_id, output.finish_reason) for output in ended] == [("waits", "timeout")]
    clock.now += 1
    assert "timeout" in [output.finish_reason for output in engine.step()]
    outputs = run(engine)
    assert outputs["later"].finish_reason == "length"
    assert engine.stats().finished == {"timeout": 2, "length": 1}


def test_a_queue_timeout_counts_for_the_queue_alone(start: Callable[..., PagedEngine], clock: Clock) -> None:
    engine = start(max_num_seqs=1)
    for name in "ab":
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=9, **GREEDY), RequestOptions(queue_timeout=2))
    clock.now += 1
    (first,) = engine.step()
    assert (first.request_id, first.queue_time) == ("a", 1.0)
    clock.now += 5
    outputs = run(engine)
    assert (outputs["a"].finish_reason, outputs["b"].finish_reason) == ("length", "timeout")


def test_a_grammar_decides_which_tokens_may_come(start: Callable[..., PagedEngine]) -> None:
    engine = start(executor="two")
    engine.add_request("grammar", [1, 2], spelled('["tomato", "potato"]', ignore_eos=False))
    engine.add_request("free", [1, 2], SamplingParams(max_tokens=12, **GREEDY))
    outputs = run(engine)
    assert outputs["grammar"].text in ("tomato", "potato")
    assert outputs["grammar"].finish_reason == "stop"
    assert len(outputs["free"].token_ids) == 12


@pytest.mark.parametrize(
    ("value", "message", "rejected"),
    [
        ("!wrong", "the grammar cannot be used: there is no such thing", True),
        ("!broken", "its compiler raised RuntimeError", False),
        ("!raises", "its grammar failed: ValueError", False),
        ("!deaf", "does not follow the grammar", False),
    ],
)
def test_a_bad_grammar_fails_its_request_alone(
    start: Callable[..., PagedEngine], built: BuiltModel, value: str, message: str, rejected: bool
) -> None:
    engine = start()
    engine.add_request("free", [1, 2], SamplingParams(max_tokens=12, **GREEDY))
    engine.add_request("bad", [1, 2, 3], spelled(value))
    outputs = run(engine)
    assert outputs["bad"].finish_reason == "error"
    assert message in str(outputs["bad"].error)
    assert outputs["bad"].rejected == rejected
    assert outputs["free"].token_ids == whole(built, [1, 2], 12)


def test_a_request_can_be_ended_while_its_grammar_is_compiled(
    start: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spelled, "go", go := threading.Event())
    engine = start()
    engine.add_request("slow", [1, 2], spelled("!slow"))
    engine.add_request("slow too", [1, 2], spelled("!slow"))
    engine.abort("slow")
    assert engine.stats().waiting == 1
    assert [output.finish_reason for output in engine.step()] == ["abort"]
    engine.close()  # waits for no compiler
    go.set()


def test_a_grammar_that_leaves_no_token_is_the_requests_own_mistake(start: Callable[..., PagedEngine]) -> None:
    engine = start()
    engine.add_request("none", [1, 2], spelled('["a"]', allowed_ids=(98, 99)))
    output = run(engine)["none"]
    assert (output.finish_reason, output.rejected) == ("error", True)
    assert "no token is left" in str(output.error)


def test_observers_are_told_when_what_happened(start: Callable[..., PagedEngine], clock: Clock) -> None:
    engine = start(max_num_seqs=1)
    for name in "ab":
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=3, **GREEDY))
    ended = []
    while engine.has_unfinished():
        clock.now += 1
        ended += [output for output in engine.step() if output.finish_reason]
    first, second = (output.record for output in ended)
    assert first is not None and second is not None
    assert (first.arrival, first.started, first.first_token, first.finished) == (100.0, 101.0, 101.0, 103.0)
    assert (second.arrival, second.started, second.first_token, second.finished) == (100.0, 104.0, 104.0, 106.0)
    engine.add_request("c", [1, 2], SamplingParams(max_tokens=3, **GREEDY))
    engine.abort("c")
    (gone,) = engine.step()
    assert gone.record is not None
    assert (gone.record.started, gone.record.first_token) == (None, None)


def test_a_grammar_needs_a_plugin(built: BuiltModel) -> None:
    engine = PagedEngine(EngineOptions(page_size=4, max_model_len=64))
    engine.load(built, TinyTokenizer(), Registry.of({("executor", "uniproc"): UNIPROC}))
    with pytest.raises(ConfigError, match="needs a plugin of kind grammar"):
        engine.add_request("x", [1], spelled('["a"]'))
    assert not engine.has_unfinished()


@pytest.mark.parametrize("where", ["submit", "collect"])
def test_the_death_of_the_executor_fails_what_ran_and_nothing_else(
    start: Callable[..., PagedEngine], built: BuiltModel, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(executor="mortal", max_num_seqs=2)
    for number in range(4):
        engine.add_request(str(number), [number, 1, 2, 3, 4], SamplingParams(max_tokens=6, **GREEDY))
    engine.step()
    monkeypatch.setattr(Mortal, "dies_at", where)
    outputs = run(engine)
    assert [outputs[name].finish_reason for name in "0123"] == ["error", "error", "length", "length"]
    assert "killed by signal 9" in str(outputs["0"].error)
    assert [outputs[name].lost for name in "0123"] == [True, True, False, False]
    assert outputs["3"].token_ids == whole(built, [3, 1, 2, 3, 4], 6)
    # What the cache held is gone with the worker.
    engine.add_request("again", [0, 1, 2, 3, 4], SamplingParams(max_tokens=6, **GREEDY))
    assert run(engine)["again"].token_ids == whole(built, [0, 1, 2, 3, 4], 6)


def test_a_death_is_told_before_the_executor_starts_again(
    start: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(executor="mortal")
    engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=4, **GREEDY))
    monkeypatch.setattr(Mortal, "dies_at", "submit")
    (output,) = engine.step()
    assert output.lost
    assert Mortal.dies_at == "submit"
    # Nobody waits, and yet it is started for those who will come.
    assert engine.has_unfinished()
    assert not engine.step()
    assert Mortal.dies_at == ""
    assert not engine.has_unfinished()


def test_an_executor_that_does_not_start_again_is_tried_again(
    start: Callable[..., PagedEngine], built: BuiltModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(executor="mortal", max_num_seqs=1)
    monkeypatch.setattr(Mortal, "dies_at", "submit")
    monkeypatch.setattr(Mortal, "failures", 1)
    for name in "abc":
        engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=4, **GREEDY))
    outputs = run(engine)
    assert [outputs[name].finish_reason for name in "abc"] == ["error", "error", "length"]
    assert outputs["c"].token_ids == whole(built, [1, 2, 3], 4)


def test_weights_change_between_steps_and_old_keys_are_not_found(start: Callable[..., PagedEngine]) -> None:
    model, other = random_model(phase="decode", seed=3), random_model(phase="decode", seed=4)
    engine = start(model, executor="two")
    prompt = list(range(1, 13))
    engine.add_request("before", prompt, SamplingParams(max_tokens=3, **GREEDY))
    run(engine)
    engine.add_request("during", prompt, SamplingParams(max_tokens=6, **GREEDY))
    (first,) = engine.step()
    with torch.no_grad():
        for own, new in zip(model.model.parameters(), other.model.parameters(), strict=True):
            own.copy_(new)
    engine.update_weights(1)
    engine.add_request("after", prompt, SamplingParams(max_tokens=3, **GREEDY))
    outputs = run(engine)
    assert outputs["after"].token_ids == whole(other, prompt, 3)
    assert len(first.token_ids + outputs["during"].token_ids) == 6
    # Neither does anybody find what was computed with both.
    longer = [*prompt, *first.token_ids, *outputs["during"].token_ids]
    engine.add_request("same", longer, SamplingParams(max_tokens=3, **GREEDY))
    engine.add_request("longer", [*longer, 1], SamplingParams(max_tokens=3, **GREEDY))
    outputs = run(engine)
    assert outputs["same"].token_ids == whole(other, longer, 3)
    assert outputs["longer"].token_ids == whole(other, [*longer, 1], 3)


def test_what_ended_before_the_steps_in_flight_are_drained_is_told_once(start: Callable[..., PagedEngine]) -> None:
    engine = start(executor="two")
    for name in "ab":
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=6, **GREEDY))
    told = list(engine.step())
    engine.abort("a")
    engine.update_weights(1)
    while engine.has_unfinished():
        told += engine.step()
    assert [output.finish_reason for output in told if output.request_id == "a"] == [None, "abort"]
    assert sum(len(output.token_ids) for output in told if output.request_id == "b") == 6


def test_stats_tell_what_is_held(start: Callable[..., PagedEngine]) -> None:
    engine = start(max_num_seqs=1)
    for name in "ab":
        engine.add_request(name, [1] * 9, SamplingParams(max_tokens=4, **GREEDY))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.held_pages, stats.steps) == (1, 1, 3, 1)
    run(engine)
    stats = engine.stats()
    assert (stats.held_pages, stats.cached_pages) == (0, 3)
    assert (stats.prompt_tokens, stats.output_tokens) == (18, 8)
    assert (stats.prefix_queries, stats.prefix_hits) == (18, 8)
    engine.reset_cache()
    assert engine.stats().cached_pages == 0
