"""The engine over a tiny model in float64: any schedule gives the tokens that whole forward passes give."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.interfaces.engine import RequestOutput
from pegboard.types import SamplingParams
from pegboard_engine import PagedEngine
from pegboard_sdk.toys.model import logits, random_model
from pegboard_sdk.toys.tokenizer import TinyTokenizer

Start = Callable[..., PagedEngine]
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


def whole(built: BuiltModel, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, each from one forward pass over everything before it."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(logits(built, torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def run(engine: PagedEngine) -> dict[str, RequestOutput]:
    """Step until nothing is left; return the joined outputs by request."""
    joined: dict[str, RequestOutput] = {}
    for _ in range(1000):
        if not engine.has_unfinished():
            break
        for output in engine.step():
            last = joined.setdefault(output.request_id, output)
            if last is not output:
                last.token_ids += output.token_ids
                last.text += output.text
                last.finish_reason, last.error = output.finish_reason, output.error
                last.num_output_tokens = output.num_output_tokens
    assert not engine.has_unfinished()
    assert engine.num_held_pages == 0
    return joined


def prompts(count: int = 5) -> list[list[int]]:
    source = random.Random(1)
    return [[source.randrange(256) for _ in range(length)] for length in (1, 17, 6, 30, 9, 4, 22)[:count]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_tokens": 7, "max_num_seqs": 3},
        {"max_num_tokens": 5, "max_num_seqs": 1},
        {"page_size": 1},
        {"page_size": 64},
    ],
    ids=str,
)
def test_any_schedule_gives_the_same_tokens(start: Start, built: BuiltModel, options: dict[str, Any]) -> None:
    engine = start(**options)
    for number, prompt in enumerate(prompts()):
        engine.add_request(str(number), prompt, SamplingParams(max_tokens=6 + number, **GREEDY))
    outputs = run(engine)
    for number, prompt in enumerate(prompts()):
        output = outputs[str(number)]
        assert output.token_ids == whole(built, prompt, 6 + number)
        assert (output.finish_reason, output.num_prompt_tokens) == ("length", len(prompt))


def test_preemption_changes_no_token(start: Start, built: BuiltModel) -> None:
    engine = start(kv_memory=start().memory.layout.page_bytes * 10, max_model_len=36)
    for number, prompt in enumerate(prompts(3)):
        engine.add_request(str(number), prompt, SamplingParams(max_tokens=18, **GREEDY))
    outputs = run(engine)
    assert engine._scheduler.num_preemptions > 0
    for number, prompt in enumerate(prompts(3)):
        assert outputs[str(number)].token_ids == whole(built, prompt, 18)


def test_requests_that_come_later_join_the_batch(start: Start, built: BuiltModel) -> None:
    engine = start()
    first, second = prompts(2)
    engine.add_request("first", first, SamplingParams(max_tokens=8, **GREEDY))
    early = [output for _ in range(3) for output in engine.step()]
    engine.add_request("second", second, SamplingParams(max_tokens=4, **GREEDY))
    outputs = run(engine)
    assert [t for output in early for t in output.token_ids] + outputs["first"].token_ids == whole(built, first, 8)
    assert outputs["second"].token_ids == whole(built, second, 4)


def test_sampling_depends_on_the_seed_alone(start: Start) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.2, top_p=0.95, seed=7, ignore_eos=True)
    alone, crowd = start(), start(max_num_tokens=9, max_num_seqs=4)
    alone.add_request("x", prompts()[3], params)
    for number, prompt in enumerate(prompts()[:3]):
        crowd.add_request(str(number), prompt, SamplingParams(max_tokens=9, temperature=0.8, seed=number))
    crowd.add_request("x", prompts()[3], params)
    assert run(alone)["x"].token_ids == run(crowd)["x"].token_ids


def test_stops_at_an_id_and_at_a_text(start: Start, built: BuiltModel) -> None:
    prompt = prompts()[1]
    tokens = whole(built, prompt, 12)
    engine = start(tokenizer=TinyTokenizer())
    text = TinyTokenizer().decode(tokens)
    engine.add_request("id", prompt, SamplingParams(max_tokens=12, stop_ids=(tokens[5],), **GREEDY))
    engine.add_request("text", prompt, SamplingParams(max_tokens=12, stop=(text[4:6],), **GREEDY))
    engine.add_request("all", prompt, SamplingParams(max_tokens=12, **GREEDY))
    outputs = run(engine)
    assert outputs["id"].token_ids == tokens[: tokens.index(tokens[5]) + 1]
    assert outputs["id"].finish_reason == outputs["text"].finish_reason == "stop"
    assert outputs["text"].text == text[: text.index(text[4:6])]
    assert outputs["all"].text == text


def test_the_context_ends_a_request(start: Start) -> None:
    engine = start(max_model_len=20)
    engine.add_request("x", prompts()[1], SamplingParams(max_tokens=100, **GREEDY))
    output = run(engine)["x"]
    assert (output.finish_reason, output.num_output_tokens) == ("length", 3)


def test_abort_frees_at_once_and_twice_is_nothing(start: Start) -> None:
    engine = start()
    for name, prompt in zip("ab", ([1] * 17, [2] * 17), strict=True):
        engine.add_request(name, prompt, SamplingParams(max_tokens=20, **GREEDY))
    engine.step()
    held = engine.num_held_pages
    engine.abort("a")
    engine.abort("a")
    engine.abort("unknown")
    assert engine.num_held_pages == held // 2
    outputs = run(engine)
    assert (outputs["a"].finish_reason, outputs["b"].finish_reason) == ("abort", "length")


def test_a_request_whose_logits_are_not_finite_fails_alone(start: Start) -> None:
    model = random_model(phase="decode", seed=3)
    with torch.no_grad():
        model.model.model.embed_tokens.weight[200] = float("nan")
    engine = start(model=model)
    good = [token for token in prompts()[1] if token != 200]
    engine.add_request("bad", [1, 200, 3], SamplingParams(max_tokens=4, **GREEDY))
    engine.add_request("good", good, SamplingParams(max_tokens=1, **GREEDY))
    outputs = run(engine)
    assert outputs["bad"].finish_reason == "error"
    assert "not finite" in str(outputs["bad"].error)
    # The head is tied to nothing here, so the other row is untouched.
    assert outputs["good"].finish_reason == "length"


def test_a_step_that_raises_fails_its_requests_and_the_engine_goes_on(
    start: Start, built: BuiltModel, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start(max_num_seqs=1)
    prompt = prompts()[1]
    for name in "ab":
        engine.add_request(name, prompt, SamplingParams(max_tokens=3, **GREEDY))

    def fail(*_: object) -> None:
        raise RuntimeError("the device went away")

    hook = built.model.register_forward_pre_hook(fail)
    (failed,) = engine.step()
    hook.remove()
    assert (failed.request_id, failed.finish_reason) == ("a", "error")
    assert "the device went away" in str(failed.error)
    assert "a step failed" in caplog.text
    assert run(engine)["b"].token_ids == whole(built, prompt, 3)


def test_new_weights_count_from_the_next_step(start: Start) -> None:
    model = random_model(phase="decode", seed=3)
    engine = start(model=model)
    other = random_model(phase="decode", seed=4)
    with torch.no_grad():
        for own, new in zip(model.model.parameters(), other.model.parameters(), strict=True):
            own.copy_(new)
    engine.update_weights(2)
    engine.add_request("x", prompts()[1], SamplingParams(max_tokens=5, **GREEDY))
    assert run(engine)["x"].token_ids == whole(other, prompts()[1], 5)
    assert engine.weights_version == 2


def test_observers_hear_of_every_end(start: Start, ended: list[RequestOutput]) -> None:
    engine = start()
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=2, **GREEDY))
    engine.add_request("b", [1, 2], SamplingParams(max_tokens=9, **GREEDY))
    engine.step()
    engine.abort("b")
    run(engine)
    assert {output.request_id: output.finish_reason for output in ended} == {"a": "length", "b": "abort"}


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "prompt is empty"),
        ([1, 260], {}, "token id 260 is not in the vocabulary of 260"),
        ([-1], {}, "token id -1"),
        ([1] * 64, {}, "prompt has 64 tokens"),
        ("text", {}, "needs a tokenizer"),
        ([1], {"stop": ("x",)}, "stop needs a tokenizer"),
        ([1], {"top_p": 0}, "top_p is 0"),
    ],
)
def test_refuses_what_cannot_be_met(start: Start, prompt: Any, params: dict[str, Any], message: str) -> None:
    engine = start()
    with pytest.raises(ConfigError, match=message):
        engine.add_request("x", prompt, SamplingParams(**params))
    assert not engine.has_unfinished()


def test_an_id_is_used_once_at_a_time(start: Start) -> None:
    engine = start()
    engine.add_request("x", [1], SamplingParams(max_tokens=1, **GREEDY))
    with pytest.raises(ConfigError, match="'x' is in use"):
        engine.add_request("x", [1], SamplingParams())
    run(engine)
    engine.add_request("x", [1], SamplingParams(max_tokens=1, **GREEDY))


def test_closed_engines_say_so(start: Start) -> None:
    engine = start()
    engine.add_request("x", [1], SamplingParams())
    engine.step()
    engine.close()
    engine.close()
    assert engine.num_held_pages == 0
    with pytest.raises(RuntimeError, match="not loaded, or closed"):
        engine.step()
    with pytest.raises(RuntimeError, match="not loaded, or closed"):
        PagedEngine().add_request("x", [1], SamplingParams())
