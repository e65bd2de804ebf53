"""/v1/responses against the engine `echo`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

URL = "/v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def events(response: Any) -> list[Any]:
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    values = [
        json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")
    ]
    assert names == [value["type"] for value in values]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    return values


def test_a_text(client: TestClient) -> None:
    answer = client.post(URL, json={"input": "say:hello", "store": True, "metadata": {"a": "b"}}).json()
    assert answer["object"] == "response"
    assert answer["status"] == "completed"
    assert answer["store"] is False
    assert answer["metadata"] == {"a": "b"}
    (item,) = answer["output"]
    assert item["role"] == "assistant"
    assert item["content"] == [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}]
    assert answer["usage"]["output_tokens"] == 6


def test_a_stream(client: TestClient) -> None:
    found = events(client.post(URL, json={"input": "say:ab", "stream": True}))
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert found[2]["item"]["content"] == []
    assert found[6]["text"] == "ab"
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "ab"


def test_one_that_is_cut(client: TestClient) -> None:
    answer = client.post(URL, json={"input": "say:hello", "max_output_tokens": 2}).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"


def test_a_call(client: TestClient) -> None:
    body = {"input": 'say:{"a": 1}', "tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}}
    (item,) = client.post(URL, json=body).json()["output"]
    assert item["type"] == "function_call"
    assert (item["name"], item["arguments"]) == ("weather", '{"a": 1}')
    types = [event["type"] for event in events(client.post(URL, json={**body, "stream": True}))]
    assert "response.function_call_arguments.delta" in types
    assert types[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]


def test_a_conversation_with_calls(client: TestClient) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
        {"type": "message", "role": "user", "content": "say:x"},
    ]
    answer = client.post(URL, json={"input": items, "instructions": "be brief"}).json()
    assert answer["output"][0]["content"][0]["text"] == "x"
    words = bytes(i if i < 256 else 10 for i in client.served.loop._engine.seen[-1][1]).decode()  # type: ignore[attr-defined]
    assert words.startswith("\nsystem\nbe brief\n\nuser\nhi\n\nassistant\n\n\ntool\nrain\n")


def test_a_schema(client: TestClient) -> None:
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    assert client.post(URL, json={"input": "say:a", "text": text}).json()["text"] == text
    params = client.served.loop._engine.seen[-1][2]  # type: ignore[attr-defined]
    assert (params.grammar.kind, params.grammar.value) == ("json_schema", '{"type": "object"}')


@pytest.mark.parametrize(
    "fields", [{"previous_response_id": "r"}, {"background": True}, {"conversation": "c"}, {"input": []}, {"input": 1}]
)
def test_what_is_refused(client: TestClient, fields: dict[str, Any]) -> None:
    response = client.post(URL, json={"input": "a", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"].split(".")[0] in fields


def test_failures_before_the_first_event_have_a_status(client: TestClient) -> None:
    assert client.post(URL, json={"input": "!reject", "stream": True}).status_code == 400
    assert client.post(URL, json={"input": "!fail"}).status_code == 500
