"""/v1/chat/completions against the engine `echo`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from pegboard.types import GrammarSpec

URL = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/c"}},
            "$defs": {"c": {"type": "string"}},
        },
    },
}


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def events(response: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def seen(client: TestClient) -> Any:
    """Return (ids, params, options) of the last request that the engine was given."""
    return client.served.loop._engine.seen[-1][1:]  # type: ignore[attr-defined]


def test_a_whole_answer(client: TestClient) -> None:
    answer = client.post(URL, json=user("say:hello", model="echo")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "echo"
    message = {"role": "assistant", "content": "hello"}
    assert answer["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    prompt = len("user\nsay:hello") + 2 + 1 + len("assistant\n")
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 6,
        "total_tokens": prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_a_stream(client: TestClient) -> None:
    options = {"include_usage": True}
    response = client.post(URL, json=user("say:hi", stream=True, stream_options=options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert all("usage" not in chunk for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "h"}, {"content": "i"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]


def test_a_stream_without_usage_has_none(client: TestClient) -> None:
    assert all("usage" not in chunk for chunk in events(client.post(URL, json=user("say:hi", stream=True)))[:-1])


def test_several_answers(client: TestClient) -> None:
    answer = client.post(URL, json=user("say:ab", n=3)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 9
    chunks = events(client.post(URL, json=user("say:ab", n=2, stream=True)))[:-1]
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_an_answer_that_is_cut(client: TestClient) -> None:
    choice = client.post(URL, json=user("say:hello", max_tokens=3)).json()["choices"][0]
    assert choice["message"]["content"] == "hel"
    assert choice["finish_reason"] == "length"
    choice = client.post(URL, json=user("say:hello", max_tokens=9, max_completion_tokens=2)).json()["choices"][0]
    assert choice["message"]["content"] == "he"


def test_without_max_tokens_the_rest_of_the_context_is_there(client: TestClient) -> None:
    client.post(URL, json=user("say:x"))
    ids, params, _ = seen(client)
    assert params.max_tokens == 256 - len(ids)


def test_all_fields_reach_the_engine(client: TestClient) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "seed": 11,
        "stop": ["x", "y"],
        "stop_token_ids": [5],
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logit_bias": {"9": -100},
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "max_tokens": 4,
    }
    assert client.post(URL, json=user("a", priority=3, cache_salt="s", **fields)).status_code == 200
    _, params, options = seen(client)
    same = "temperature top_p top_k min_p typical_p repetition_penalty presence_penalty frequency_penalty seed".split()
    for name in [*same, "min_tokens", "ignore_eos", "max_tokens"]:
        assert getattr(params, name) == fields[name]
    assert params.stop == ("x", "y")
    assert params.stop_ids == (5,)
    assert params.include_stop
    assert not params.skip_special
    assert params.logit_bias == {9: -100}
    assert params.allowed_ids == (1, 2)
    assert params.bad_words == ("no",)
    assert options.priority == 3
    assert options.salt == "s"


def test_negative_seeds_and_other_spellings_of_off(client: TestClient) -> None:
    assert client.post(URL, json=user("say:a", seed=-1, top_k=-1, top_p=0, stop="z")).status_code == 200
    _, params, _ = seen(client)
    assert 0 <= params.seed < 2**63
    assert (params.top_k, params.top_p) == (1, 1.0)
    assert params.stop == ("z",)


def test_what_an_account_needs_is_taken(client: TestClient) -> None:
    fields = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k"}
    assert client.post(URL, json=user("say:a", **fields)).status_code == 200


def test_logprobs(client: TestClient) -> None:
    choice = client.post(URL, json=user("say:AB", logprobs=True, top_logprobs=2)).json()["choices"][0]
    first, second, end = choice["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("A", -0.6, [65])
    assert [entry["token"] for entry in first["top_logprobs"]] == ["<", "F"]
    assert second["token"] == "B"
    assert end["token"] == "<eos>"
    chunks = events(client.post(URL, json=user("say:AB", logprobs=True, top_logprobs=2, stream=True)))[:-1]
    streamed = [
        entry for chunk in chunks for entry in (chunk["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    assert streamed == [first, second, end]


def test_logprobs_without_the_most_probable(client: TestClient) -> None:
    entries = client.post(URL, json=user("say:A", logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert entries[0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            "json_schema",
            '{"type": "object"}',
        ),
        ({"guided_json": {"type": "array"}}, "json_schema", '{"type": "array"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["yes", "no"]}, "choice", '["yes", "no"]'),
        ({"guided_grammar": "start: A"}, "ebnf", "start: A"),
        ({"structured_outputs": {"regex": "b+"}}, "regex", "b+"),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, "json_schema", '{"type": "null"}'),
        ({"structured_outputs": {"choice": ["x"]}}, "choice", '["x"]'),
    ],
)
def test_grammars(client: TestClient, fields: dict[str, Any], kind: Any, value: str) -> None:
    assert client.post(URL, json=user("say:a", **fields)).status_code == 200
    assert seen(client)[1].grammar == GrammarSpec(kind, value)


def test_text_as_a_format_is_no_grammar(client: TestClient) -> None:
    client.post(URL, json=user("say:a", response_format={"type": "text"}))
    assert seen(client)[1].grammar is None


def test_a_named_function_is_called(client: TestClient) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    body = user('say:{"city": "Ulm"}', tools=[TOOL], tool_choice=choice)
    answer = client.post(URL, json=body).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    (call,) = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'}
    assert call["id"].startswith("call-")
    assert json.loads(seen(client)[1].grammar.value) == TOOL["function"]["parameters"]  # type: ignore[index]


def test_required_calls_stream(open_client: Callable[..., TestClient]) -> None:
    client = open_client({"max_model_len": 1024})
    said = '[{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "weather", "arguments": {"city": "Rom"}}]'
    body = user(f"say:{said}", tools=[TOOL], tool_choice="required", max_tokens=150)
    chunks = events(client.post(URL, json={**body, "stream": True}))[:-1]
    entries = [e for c in chunks for e in c["choices"][0]["delta"].get("tool_calls", [])]
    calls: dict[int, dict[str, str]] = {}
    for entry in entries:
        call = calls.setdefault(entry["index"], {"name": "", "arguments": "", "id": ""})
        call["name"] += entry["function"].get("name", "")
        call["arguments"] += entry["function"]["arguments"]
        call["id"] += entry.get("id", "")
    assert [(c["name"], json.loads(c["arguments"])["city"]) for _, c in sorted(calls.items())] == [
        ("weather", "Ulm"),
        ("weather", "Rom"),
    ]
    assert len({call["id"] for call in calls.values()}) == 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    grammar = json.loads(seen(client)[1].grammar.value)
    assert grammar["$defs"]["0"]["properties"]["city"] == {"$ref": "#/$defs/0/$defs/c"}
    assert "maxItems" not in grammar


def test_one_call_at_a_time(open_client: Callable[..., TestClient]) -> None:
    client = open_client({"max_model_len": 1024})
    said = '[{"name": "weather", "arguments": {}}, {"name": "weather", "arguments": {}}]'
    body = user("say:" + said, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=100)
    answer = client.post(URL, json=body).json()["choices"][0]
    assert len(answer["message"]["tool_calls"]) == 1
    assert json.loads(seen(client)[1].grammar.value)["maxItems"] == 1


def test_tools_go_to_the_template(client: TestClient) -> None:
    client.post(URL, json=user("say:a", tools=[TOOL]))
    assert bytes(i for i in seen(client)[0] if i < 256).startswith(b'tools\n[{"type": "function"')
    client.post(URL, json=user("say:a", tools=[TOOL], tool_choice="none"))
    assert b"tools" not in bytes(i for i in seen(client)[0] if i < 256)


def test_variables_of_the_template(client: TestClient) -> None:
    client.post(URL, json=user("say:a", chat_template_kwargs={"thinking": False}, reasoning_effort="low"))
    words = bytes(i for i in seen(client)[0] if i < 256)
    assert words.startswith(b'variables\n{"thinking": false, "reasoning_effort": "low"}')


def test_messages_of_all_kinds(client: TestClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "user", "content": "say:x"},
    ]
    assert client.post(URL, json={"messages": messages}).status_code == 200
    words = bytes(i if i < 256 else 10 for i in seen(client)[0]).decode()
    assert words.startswith("\nsystem\nbe brief\n\nuser\na\nb\n\nassistant\n\n\ntool\nrain\n")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 65}, "n", "at most 64"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"top_logprobs": 2}, "top_logprobs", "`logprobs` must be true"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "at most 20"),
        ({"stop": [""]}, "stop", "0 characters"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is not a token id"),
        ({"logit_bias": {"260": 1}}, "logit_bias", "not a token id below 260"),
        ({"allowed_token_ids": [260]}, "allowed_token_ids", "not a token id below 260"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least one"),
        ({"bad_words": [""]}, "bad_words", "empty"),
        ({"tool_choice": "auto"}, "tool_choice", "no tools"),
        ({"tools": [TOOL, TOOL]}, "tools", "same name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "structured_outputs", "one thing only"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"frobnicate": 1}, "frobnicate", "Unrecognized request argument supplied: frobnicate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "only text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "Input should be"),
    ],
)
def test_mistakes(client: TestClient, fields: dict[str, Any], param: str, words: str) -> None:
    response = client.post(URL, json={**user("say:a"), **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


def test_unknown_fields_may_be_ignored(open_client: Callable[..., TestClient]) -> None:
    client = open_client(unknown="ignore")
    assert client.post(URL, json=user("say:a", frobnicate=1)).status_code == 200


def test_a_prompt_that_is_too_long(client: TestClient) -> None:
    error = client.post(URL, json=user("a" * 300)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    error = client.post(URL, json=user("a" * 100, max_tokens=200)).json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_unknown_models(client: TestClient) -> None:
    response = client.post(URL, json=user("say:a", model="gpt-9"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert client.post(URL, json=user("say:a", model="other")).json()["model"] == "other"


@pytest.mark.parametrize("stream", [False, True])
def test_failures(client: TestClient, stream: bool) -> None:
    for word, status, kind in (
        ("!fail", 500, "server_error"),
        ("!reject", 400, "invalid_request_error"),
        ("!late", 503, ""),
        ("!lose", 503, "server_error"),
    ):
        response = client.post(URL, json=user(word, stream=stream))
        assert response.status_code == status
        assert "secret" not in response.text
        if kind:
            assert response.json()["error"]["type"] == kind
    assert "does not compile" in client.post(URL, json=user("!reject", stream=stream)).json()["error"]["message"]


def test_the_model_s_own_sampling(open_client: Callable[..., TestClient]) -> None:
    client = open_client()
    client.served.defaults = {"temperature": 0.3, "top_k": 5, "do_sample": True}  # type: ignore[attr-defined]
    client.post(URL, json=user("say:a"))
    assert (seen(client)[1].temperature, seen(client)[1].top_k) == (0.3, 5)
    client.post(URL, json=user("say:a", temperature=0.9, top_k=0))
    assert (seen(client)[1].temperature, seen(client)[1].top_k) == (0.9, 0)
