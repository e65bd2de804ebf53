"""/v1/completions against the engine `echo`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

URL = "/v1/completions"


def events(response: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_text(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": "say:hello", "model": "echo"}).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens"] == 10


def test_sixteen_tokens_unless_told(client: TestClient) -> None:
    choice = client.post(URL, json={"prompt": "say:" + "x" * 40}).json()["choices"][0]
    assert choice["text"] == "x" * 16
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("n", [1, 2])
def test_batches_of_texts_and_ids(client: TestClient, n: int) -> None:
    texts = ["say:one", "say:two", "say:three"]
    answer = client.post(URL, json={"prompt": texts, "n": n}).json()
    words = [choice["text"] for choice in answer["choices"]]
    assert words == [word for word in ("one", "two", "three") for _ in range(n)]
    assert [choice["index"] for choice in answer["choices"]] == list(range(3 * n))
    ids = [list(text.encode()) for text in texts]
    assert [c["text"] for c in client.post(URL, json={"prompt": ids, "n": n}).json()["choices"]] == words
    assert client.post(URL, json={"prompt": ids[0]}).json()["choices"][0]["text"] == "one"


def test_a_stream_of_a_batch(client: TestClient) -> None:
    body = {"prompt": ["say:ab", "say:cde"], "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(client.post(URL, json=body))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "ab", 1: "cde"}
    assert usage["usage"]["completion_tokens"] == 7
    assert done == "[DONE]"


def test_echo_with_the_prompt_s_logprobs_as_lm_eval_asks_for_it(client: TestClient) -> None:
    """lm-eval sums token_logprobs[context:-1] and takes a token as greedy when it is the greatest of its top_logprobs."""
    context, rest = [65, 70, 75], [80, 91]
    body = {"prompt": [context + rest], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    choice = client.post(URL, json=body).json()["choices"][0]
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 6
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert found["token_logprobs"][3:-1] == [-0.1, -0.2]
    greedy = [
        t == max(top.values())
        for t, top in zip(found["token_logprobs"][3:-1], found["top_logprobs"][3:-1], strict=True)
    ]
    assert greedy == [True, False]
    assert found["tokens"][:5] == ["A", "F", "K", "P", "["]
    assert found["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert choice["text"] == "AFKP[" + "A"


def test_echo_alone(client: TestClient) -> None:
    body = {"prompt": list(b"say:x"), "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = client.post(URL, json=body).json()
    assert answer["choices"][0]["text"] == "say:x"
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 5
    assert answer["usage"]["completion_tokens"] == 0


def test_a_stream_with_echo(client: TestClient) -> None:
    body = {"prompt": list(b"say:ab"), "echo": True, "logprobs": 1, "stream": True, "n": 2}
    chunks = [chunk["choices"][0] for chunk in events(client.post(URL, json=body))[:-1]]
    for whole in client.post(URL, json={**body, "stream": False}).json()["choices"]:
        mine = [chunk for chunk in chunks if chunk["index"] == whole["index"]]
        assert "".join(chunk["text"] for chunk in mine) == whole["text"] == "say:abab"
        assert whole["logprobs"]["tokens"] == [*"say:ab", "a", "b", "<eos>"]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            assert [x for c in mine for x in (c["logprobs"] or {name: []})[name]] == whole["logprobs"][name]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": [1, 260]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 2049}, None),
        ({"max_tokens": 10**6}, None),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_mistakes(client: TestClient, fields: dict[str, Any], param: str | None) -> None:
    response = client.post(URL, json={"prompt": "a", **fields})
    assert response.status_code == 400
    found = response.json()["error"]["param"]
    assert found == param or (found or "").startswith(f"{param}.")


def test_best_of_as_many_as_n(client: TestClient) -> None:
    assert client.post(URL, json={"prompt": "say:a", "n": 2, "best_of": 2}).status_code == 200


def test_one_request_that_costs_too_much(client: TestClient) -> None:
    body = {"prompt": ["a"] * 1200, "n": 64, "max_tokens": 200}
    assert client.post(URL, json=body).json()["error"]["code"] == "too_many_tokens"


def test_one_failure_fails_the_batch_and_ends_the_rest(client: TestClient) -> None:
    response = client.post(URL, json={"prompt": ["!wait", "!fail"], "max_tokens": 200})
    assert response.status_code == 500
    assert client.post(URL, json={"prompt": "say:a"}).json()["choices"][0]["text"] == "a"
    engine = client.served.loop._engine  # type: ignore[attr-defined]
    assert len(engine.aborted) == 1
    assert not engine.requests
