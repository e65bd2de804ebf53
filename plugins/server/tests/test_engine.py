"""The server over the real engine, with a tiny model: HTTP changes nothing about what the model says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from starlette.testclient import TestClient

from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard_server.app import create_app
from pegboard_server.options import ServerOptions
from pegboard_server.served import Served
from pegboard_server.serving import load_engine, make_served

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def serve(folder: Path, attention: str = "sdpa", **options: Any) -> Served:
    registry = Registry.discover()
    engine = {"use": "paged", "page_size": 4, "kv_memory": "4MB", "max_num_seqs": 8, "max_num_tokens": 32}
    loaded = load_engine(registry, str(folder), engine=engine, dtype="float32", platform="cpu", attention=attention)
    return make_served(registry, *loaded[:2], ServerOptions(names=("toy",), **options), loaded[2])


@pytest.fixture(scope="module", params=["sdpa", "auto"])
def served(folder: Path, request: pytest.FixtureRequest) -> Served:
    """With torch's attention, and with what the platform prefers: the compiled one where its library is."""
    return serve(folder, request.param)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[TestClient]:
    with TestClient(create_app(served), base_url="http://localhost") as made:
        yield made
        assert served.loop.stats().held_pages == 0
        assert served.loop.num_open == 0


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    """Log-probabilities [T, V] float64 of each position, from a pass over the whole sequence without a cache."""
    registry = Registry.discover()
    built = open_any(registry, str(folder)).build(registry, dtype="float64", platform="cpu", phase="train")

    def logprobs(ids: list[int]) -> torch.Tensor:
        positions = torch.arange(len(ids))
        with torch.no_grad():
            hidden = built.model(torch.tensor(ids), built.context([len(ids)], positions))
            return torch.log_softmax(built.model.head(hidden).double(), -1)

    return logprobs


def test_a_prompt_s_logprobs_are_the_model_s(client: TestClient, served: Served, oracle: Any) -> None:
    ids = served.tokenizer.encode("hello there, world")
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": True}
    found = client.post(TEXT, json=body).json()["choices"][0]["logprobs"]
    expected = oracle(ids)
    for place, token in enumerate(ids[1:], 1):
        assert found["token_logprobs"][place] == pytest.approx(float(expected[place - 1, token]), abs=1e-4)
    best = [max(top.values()) for top in found["top_logprobs"][1:]]
    assert best == pytest.approx([float(row.max()) for row in expected], abs=1e-4)
    assert "".join(found["tokens"][: len(ids)]) == "hello there, world"


def test_greedy_tokens_are_the_model_s(client: TestClient, served: Served, oracle: Any) -> None:
    ids = served.tokenizer.encode("hello")
    answer = client.post(TEXT, json={"prompt": ids, "max_tokens": 8, "logprobs": 0, **GREEDY}).json()["choices"][0]
    for token in range(8):
        ids.append(int(oracle(ids)[-1].argmax()))
        assert answer["logprobs"]["tokens"][token] == served.tokenizer.decode([ids[-1]], skip_special=False)


def test_a_crowd_says_what_each_says_alone(client: TestClient, served: Served) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": f"hello {'there ' * (number % 5)}{number}", "max_tokens": 5 + number % 7, "seed": number}
        | (GREEDY if number % 2 else {"temperature": 1.5})
        for number in range(20)
    ]
    alone = [client.post(TEXT, json=body).json()["choices"][0]["text"] for body in bodies]

    async def crowd() -> list[str]:
        transport = httpx.ASGITransport(create_app(served))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as many:
            responses = await asyncio.gather(*(many.post(TEXT, json=body) for body in bodies))
        return [response.json()["choices"][0]["text"] for response in responses]

    together = client.portal.call(crowd)  # type: ignore[union-attr]
    assert together == alone


def test_answers_share_a_prompt(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "n": 3, "seed": 5, "max_tokens": 6, "temperature": 2}
    first, again = (client.post(CHAT, json=body).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_embeddings_and_scores(client: TestClient, served: Served, oracle: Any) -> None:
    vectors = client.post("/v1/embeddings", json={"input": ["hello", "world"]}).json()["data"]
    assert [sum(x * x for x in each["embedding"]) for each in vectors] == pytest.approx([1, 1])
    score = client.post("/score", json={"query": "a", "documents": ["b"]}).json()["data"][0]["score"]
    prompt = 'Does the document answer the query? Say "yes" or "no" and nothing else.\n\nQuery: a\n\nDocument: b'
    ids = client.post("/tokenize", json={"messages": [{"role": "user", "content": prompt}]}).json()["tokens"]
    row = oracle(ids)[-1]
    yes, no = (float(row[served.tokenizer.encode(word)[0]].exp()) for word in ("yes", "no"))
    assert score == pytest.approx(yes / (yes + no), abs=1e-4)


def test_refusals_of_the_engine_are_the_request_s_mistakes(client: TestClient) -> None:
    response = client.post(TEXT, json={"prompt": "hello", "priority": 1, "min_tokens": 5, "max_tokens": 3})
    assert response.status_code == 200
    response = client.post(TEXT, json={"prompt": "hello " * 400})
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_answers_that_must_match(client: TestClient) -> None:
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "temperature": 1.5, "seed": 3}
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    text = client.post(CHAT, json={**ask, "response_format": wanted}).json()["choices"][0]["message"]["content"]
    assert json.loads(text) in ({"a": 1}, {"a": 2})
    text = client.post(CHAT, json={**ask, "guided_regex": "[ab]{3}"}).json()["choices"][0]["message"]["content"]
    assert re.fullmatch("[ab]{3}", text)
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    choice = client.post(
        CHAT, json={**ask, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    ).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) in ({"a": 1}, {"a": 2})


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_grammar_is_the_request_s_mistake(client: TestClient, stream: bool) -> None:
    response = client.post(TEXT, json={"prompt": "hello", "guided_regex": "(", "stream": stream})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_nothing_is_held_afterwards(client: TestClient, served: Served) -> None:
    assert served.loop.stats().held_pages == 0
    assert "pegboard_kv_pages_held 0" in client.get("/metrics").text


def test_cached_beginnings_are_shared_within_a_key(folder: Path) -> None:
    keys = ("the-first-key", "the-second-key")
    body = {"model": "toy", "prompt": "hello there, hello world", "max_tokens": 1, **GREEDY}

    def cached(client: TestClient, key: str, **changes: Any) -> int:
        response = client.post(TEXT, json={**body, **changes}, headers={"authorization": f"Bearer {key}"})
        return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    for apart in (False, True):
        with TestClient(
            create_app(serve(folder, keys=keys, cache_per_key=apart)), base_url="http://localhost"
        ) as client:
            assert cached(client, keys[0]) == 0
            found = cached(client, keys[0])
            assert found > 0
            assert cached(client, keys[1]) == (0 if apart else found)
            assert cached(client, keys[1]) == found
            assert cached(client, keys[1], cache_salt="x") == 0
