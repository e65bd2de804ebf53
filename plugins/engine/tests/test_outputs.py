from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.interfaces.engine import RequestOptions, RequestOutput
from pegboard.types import SamplingParams
from pegboard_engine import PagedEngine
from pegboard_engine.outputs import StepOutputs
from pegboard_engine.request import Request
from pegboard_sdk.toys.tokenizer import TinyTokenizer

Start = Callable[..., PagedEngine]


def request(name: str) -> Request:
    return Request(name, np.arange(3, dtype=np.int32), SamplingParams(), limit=9, index=2)


@given(parts=st.lists(st.one_of(st.text(max_size=2), st.lists(st.text(max_size=2), max_size=3)), max_size=6))
def test_columns_are_what_the_outputs_would_have_been(parts: list[str | list[str]]) -> None:
    outputs, expected = StepOutputs(), []
    for part in parts:
        if isinstance(part, str):
            outputs.append(RequestOutput(part, text="x"))
            expected.append(RequestOutput(part, text="x"))
            continue
        rows = np.array([request(name) for name in part], dtype=object)
        outputs.add_tokens(rows, np.arange(len(part)) + 5, np.arange(len(part)) + 1)
        expected += [
            RequestOutput(n, [5 + i], num_prompt_tokens=3, num_output_tokens=1 + i, index=2) for i, n in enumerate(part)
        ]
    assert len(outputs) == len(expected)
    assert bool(outputs) == bool(expected)
    assert list(outputs) == expected
    assert outputs[:2] == expected[:2]
    assert all(one is other for one, other in zip(outputs, outputs, strict=True))


def test_what_comes_after_a_look_is_told_too() -> None:
    outputs = StepOutputs()
    outputs.add_tokens(np.array([request("a")], dtype=object), np.array([7]), np.array([1]))
    outputs[0].text = "changed"
    outputs.append(RequestOutput("b"))
    assert [(one.request_id, one.text) for one in outputs] == [("a", "changed"), ("b", "")]


def joined(engine: PagedEngine) -> dict[tuple[str, int], RequestOutput]:
    """Run to the end and put the outputs of each answer together."""
    found: dict[tuple[str, int], RequestOutput] = {}
    while engine.has_unfinished():
        for output in engine.step():
            before = found.setdefault((output.request_id, output.index), RequestOutput(output.request_id))
            found[output.request_id, output.index] = replace(
                output,
                token_ids=before.token_ids + output.token_ids,
                text=before.text + output.text,
                logprobs=[*(before.logprobs or ()), *(output.logprobs or ())] or None,
                prompt_logprobs=before.prompt_logprobs or output.prompt_logprobs,
                num_cached_tokens=before.num_cached_tokens or output.num_cached_tokens,
                queue_time=0.0 if output.queue_time is not None else before.queue_time,
                record=None,
            )
    return found


PARAMS = {
    "plain": SamplingParams(max_tokens=9, temperature=1, seed=3),
    "stop text": SamplingParams(max_tokens=30, temperature=1, seed=4, stop=("a", "e", "\x01", "\x02")),
    "stop id": SamplingParams(max_tokens=30, temperature=1, seed=5, stop_ids=tuple(range(60))),
    "stop included": SamplingParams(max_tokens=30, temperature=1, seed=5, stop_ids=tuple(range(60)), include_stop=True),
    "logprobs": SamplingParams(max_tokens=5, temperature=1, seed=6, logprobs=2, prompt_logprobs=1, n=2),
    "no text": SamplingParams(max_tokens=5, temperature=0, detokenize=False, ignore_eos=True),
}


@pytest.mark.parametrize("name", PARAMS)
def test_a_whole_is_the_sum_of_its_parts(start: Start, name: str) -> None:
    params, prompts = PARAMS[name], ([5, 6, 7, 8, 9], [5, 6, 7, 8, 10], [40])
    found = []
    for whole in (False, True):
        engine = start(tokenizer=TinyTokenizer())
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), prompt, params, RequestOptions(whole=whole))
        found.append(joined(engine))
    parts, wholes = found
    assert parts == wholes
    assert any(output.token_ids for output in wholes.values())


def test_a_whole_is_told_once_and_knows_when_its_first_token_came(start: Start) -> None:
    engine = start(tokenizer=TinyTokenizer())
    engine.add_request("x", [1, 2], SamplingParams(max_tokens=4, ignore_eos=True), RequestOptions(whole=True))
    engine.add_request("y", [1, 2], SamplingParams(max_tokens=20, ignore_eos=True), RequestOptions(whole=True))
    told = [list(engine.step()) for _ in range(6)]
    (output,) = (one for step in told for one in step)
    assert output.num_output_tokens == len(output.token_ids) == 4
    record = output.record
    assert record is not None
    assert record.started is not None
    assert record.first_token is not None
    assert record.arrival <= record.started <= record.first_token < record.finished
    engine.abort("y")
    (gone,) = engine.step()
    assert gone.finish_reason == "abort"
    assert len(gone.token_ids) == gone.num_output_tokens > 0
