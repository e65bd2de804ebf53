"""What an answer can tell beside its tokens, and several answers to one prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.interfaces.engine import RequestOptions, RequestOutput
from pegboard.types import SamplingParams
from pegboard_engine import PagedEngine
from pegboard_sdk.toys.model import logits
from pegboard_sdk.toys.tokenizer import TinyTokenizer

Start = Callable[..., PagedEngine]
PROMPT = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11]


def run(engine: PagedEngine) -> list[RequestOutput]:
    found = []
    while engine.has_unfinished():
        found += engine.step()
    assert engine.num_held_pages == 0
    return found


def tokens(outputs: list[RequestOutput], index: int = 0, name: str = "x") -> list[int]:
    return [t for output in outputs if (output.request_id, output.index) == (name, index) for t in output.token_ids]


def test_answers_share_the_prompt_and_draw_from_streams_of_their_own(start: Start) -> None:
    engine = start()
    params = SamplingParams(max_tokens=8, n=3, temperature=1.0, seed=5, ignore_eos=True)
    engine.add_request("x", PROMPT, params)
    engine.step()
    assert engine.stats().running == 1, "the others wait for the pages that the first one computes"
    engine.step()
    stats = engine.stats()
    assert stats.running == 3
    assert stats.prefix_hits == 2 * 8
    # Two full pages in common, and one of its own for each.
    assert stats.held_pages == 2 + 3
    outputs = run(engine)
    answers = [tokens(outputs, index) for index in range(3)]
    assert len({tuple(answer) for answer in answers}) == 3
    alone = start()
    alone.add_request("x", PROMPT, SamplingParams(max_tokens=8, temperature=1.0, seed=5, ignore_eos=True))
    first = tokens(run(alone))
    assert first[-len(answers[0]) :] == answers[0]


def test_an_abort_ends_all_answers(start: Start) -> None:
    engine = start()
    engine.add_request("x", PROMPT, SamplingParams(max_tokens=20, n=4, ignore_eos=True))
    for _ in range(3):
        engine.step()
    engine.abort("x")
    assert engine.num_held_pages == 0
    assert sorted(output.index for output in engine.step() if output.finish_reason == "abort") == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [{}, {"max_num_tokens": 3, "max_num_seqs": 2}], ids=str)
def test_logprobs_are_those_of_the_model(start: Start, built: BuiltModel, options: dict[str, int]) -> None:
    engine = start(**options)
    params = SamplingParams(
        max_tokens=5, temperature=0.9, seed=1, logprobs=3, prompt_logprobs=2, logprob_ids=(7, 250), ignore_eos=True
    )
    engine.add_request("x", PROMPT, params)
    engine.add_request("other", [5, 5], SamplingParams(max_tokens=9, ignore_eos=True))
    outputs = [output for output in run(engine) if output.request_id == "x"]
    ids = [*PROMPT, *tokens(outputs)]
    expected = logits(built, torch.tensor(ids)).log_softmax(-1)
    entries = [entry for output in outputs for entry in output.logprobs or ()]
    assert [entry.token_id for entry in entries] == ids[len(PROMPT) :]
    for place, entry in enumerate(entries, len(PROMPT)):
        row = expected[place - 1]
        assert entry.logprob == pytest.approx(float(row[ids[place]]), abs=1e-5)
        assert entry.rank == 1 + int((row > row[ids[place]]).sum())
        assert [token for token, _ in entry.top] == row.topk(3).indices.tolist()
        assert dict(entry.extra) == pytest.approx({7: float(row[7]), 250: float(row[250])}, abs=1e-5)
    prompt = outputs[0].prompt_logprobs
    assert prompt is not None and prompt[0] is None and len(prompt) == len(PROMPT)
    for place, found in enumerate(prompt[1:], 1):
        assert found is not None
        assert found.logprob == pytest.approx(float(expected[place - 1, PROMPT[place]]), abs=1e-5)
        assert [token for token, _ in found.top] == expected[place - 1].topk(2).indices.tolist()
    assert all(output.prompt_logprobs is None for output in outputs[1:])


@pytest.mark.parametrize("options", [{}, {"max_num_tokens": 3, "max_num_seqs": 2}], ids=str)
@pytest.mark.parametrize("start_at", [0, 1, 2, 5, 8, 9, 10, 11, 50])
def test_logprobs_of_a_prompts_end_leave_its_beginning_to_the_cache(
    start: Start, built: BuiltModel, options: dict[str, int], start_at: int
) -> None:
    engine = start(page_size=4, **options)
    engine.add_request("before", PROMPT, SamplingParams(max_tokens=1, ignore_eos=True))
    run(engine)
    params = SamplingParams(
        max_tokens=2, temperature=0, prompt_logprobs=0, prompt_logprobs_start=start_at, ignore_eos=True
    )
    engine.add_request("x", PROMPT, params)
    (told,) = [output for output in run(engine) if output.prompt_logprobs is not None]
    expected = logits(built, torch.tensor(PROMPT)).log_softmax(-1)
    assert [entry is None for entry in told.prompt_logprobs] == [p < max(start_at, 1) for p in range(len(PROMPT))]
    for place, entry in enumerate(told.prompt_logprobs):
        if entry is not None:
            assert entry.token_id == PROMPT[place]
            assert entry.logprob == pytest.approx(float(expected[place - 1, PROMPT[place]]), abs=1e-5)
    # Whole pages before the first row that tells something; the last token is computed in any case.
    assert told.num_cached_tokens == min(max(start_at - 1, 0), len(PROMPT) - 1) // 4 * 4
    assert engine.num_held_pages == 0


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(
    "options", [{}, {"max_num_tokens": 4, "max_num_seqs": 3}, {"max_num_tokens": 5, "max_num_seqs": 1}], ids=str
)
def test_embeddings_are_hidden_states(start: Start, built: BuiltModel, pooling: str, options: dict[str, int]) -> None:
    engine = start(**options)
    chosen = RequestOptions(task="embed", pooling=pooling)  # type: ignore[arg-type]
    for name in "ab":  # the second finds the first one's pages, where that is enough
        engine.add_request(name, PROMPT, SamplingParams(), chosen)
    engine.add_request("text", PROMPT, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    outputs = {output.request_id: output for output in run(engine)}
    positions = torch.arange(len(PROMPT))
    with torch.inference_mode():
        hidden = built.model(torch.tensor(PROMPT), built.context([len(PROMPT)], positions))
    expected = hidden[-1] if pooling == "last" else hidden.mean(0)
    for name in "ab":
        assert outputs[name].embedding == pytest.approx(expected.tolist(), abs=1e-5)
        assert (outputs[name].finish_reason, outputs[name].token_ids) == ("stop", [])
    assert outputs["text"].num_output_tokens == 2


def test_a_full_hit_recomputes_one_token(start: Start, built: BuiltModel) -> None:
    engine = start()
    prompt = PROMPT[:8]  # two full pages
    for name in ("first", "second"):
        engine.add_request(name, prompt, SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
        before = engine.stats()
        outputs = run(engine)
        found = tokens(outputs, 0, name)
        expected = list(prompt)
        for _ in range(4):
            expected.append(int(logits(built, torch.tensor(expected))[-1].argmax()))
        assert found == expected[8:]
        assert outputs[0].num_cached_tokens == (7 if name == "second" else 0)
        assert engine.stats().steps - before.steps == 4


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({"stop": ("x",), "detokenize": False}, {}, "stop texts need the text"),
        ({}, {"deadline": 0}, "deadline is 0"),
        ({}, {"queue_timeout": float("nan")}, "queue_timeout is nan"),
        ({"n": 2}, {"task": "embed"}, "an embedding has one answer"),
        ({"n": 0}, {}, "n is 0"),
        ({"logprobs": 21}, {}, "logprobs is 21"),
        ({"stop_ids": (260,)}, {}, "stop_ids is"),
    ],
)
def test_refuses_what_makes_no_sense(start: Start, params: dict, options: dict, message: str) -> None:
    engine = start(tokenizer=TinyTokenizer())
    with pytest.raises(ConfigError, match=message):
        engine.add_request("x", [1], SamplingParams(**params), RequestOptions(**options))
    assert not engine.has_unfinished()
