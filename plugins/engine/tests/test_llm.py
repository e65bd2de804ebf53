from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import ConfigError, ModelError
from pegboard.types import Message
from pegboard_engine import LLM, SamplingParams
from pegboard_engine.llm import default_params

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32", page_size=4) as loaded:
        yield loaded


def test_outputs_stand_in_the_order_of_the_prompts(llm: LLM) -> None:
    texts = ["hello", "hello there, world", "w"]
    params = [SamplingParams(max_tokens=count, **GREEDY) for count in (9, 1, 4)]
    together = llm.generate(texts, params)
    assert [g.prompt for g in together] == texts
    assert [len(g.outputs[0].token_ids) for g in together] == [9, 1, 4]
    alone = [llm.generate(text, one)[0] for text, one in zip(texts, params, strict=True)]
    assert [g.outputs for g in alone] == [g.outputs for g in together]


def test_ids_and_text_are_the_same_prompt(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, **GREEDY)
    ids = llm.tokenizer.encode("hello world")
    by_text, by_ids, listed = (
        llm.generate("hello world", params),
        llm.generate(ids, params),
        llm.generate([ids], params),
    )
    assert by_text[0].outputs == by_ids[0].outputs == listed[0].outputs
    assert (by_text[0].prompt, by_ids[0].prompt) == ("hello world", None)
    assert by_text[0].prompt_token_ids == ids


def test_chat_goes_through_the_template(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, **GREEDY)
    conversation = [{"role": "user", "content": "hello"}]
    (one,) = llm.chat(conversation, params)
    assert one.prompt == "<|user|>hello<|end|><|assistant|>"
    many = llm.chat([conversation, [Message("user", "hello")]], params)
    assert [g.outputs for g in many] == [one.outputs] * 2
    with pytest.raises(ConfigError, match="message 0 needs a role and a content"):
        llm.chat([{"role": "user"}], params)


def test_stream_joins_to_the_whole_and_may_be_left(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, **GREEDY)
    (whole,) = llm.generate("hello", params)
    pieces = list(llm.stream("hello", params))
    assert "".join(piece.text for piece in pieces) == whole.outputs[0].text
    assert [t for piece in pieces for t in piece.token_ids] == whole.outputs[0].token_ids
    for _ in llm.stream("hello", params):
        break
    llm.engine.step()
    assert not llm.engine.has_unfinished()
    assert llm.engine.num_held_pages == 0  # type: ignore[attr-defined]


def test_a_bad_request_leaves_none_behind(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="the prompt has"):
        llm.generate([[1, 2], [1] * 500], SamplingParams(max_tokens=2))
    llm.engine.step()
    assert not llm.engine.has_unfinished()
    with pytest.raises(ConfigError, match="2 prompts, 1 params"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_wrong_options_are_told_before_a_model_is_read() -> None:
    with pytest.raises(ConfigError, match=r"page_sise.*page_size"):
        LLM("/nowhere", page_sise=3)
    with pytest.raises(ModelError, match="no file or folder /nowhere"):
        LLM("/nowhere")


def test_default_sampling_is_the_models_own() -> None:
    own = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 3}
    assert default_params(own) == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    assert default_params(own, temperature=0.1, top_k=None) == SamplingParams(temperature=0.1, top_k=20, top_p=0.95)
    assert default_params({"temperature": 0.6, "top_k": 50}) == SamplingParams(temperature=0.0)
    assert default_params({}) == SamplingParams(temperature=0.0)
