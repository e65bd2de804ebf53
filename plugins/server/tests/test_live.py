"""A server on a real port: the openai client, streams as they come, clients that go away, and the end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from pegboard_server.options import Limits
from pegboard_server.served import Served

Start = Callable[..., Served]
Listen = Callable[..., AbstractContextManager[Any]]
CHAT = "/v1/chat/completions"


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    while not condition():
        time.sleep(0.005)


def connect(url: str) -> httpx.Client:
    """Return a client that waits for as long as a busy machine needs."""
    return httpx.Client(base_url=url, timeout=300)


def send(url: str, path: str, body: bytes, length: int | None = None) -> socket.socket:
    """Send a request and return the connection. length: of the body as its header tells it, where that is not true."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_the_openai_client(start: Start, listen: Listen) -> None:
    with (
        listen(start(keys=("key-of-the-test",))) as url,
        OpenAI(base_url=f"{url}/v1", api_key="key-of-the-test") as client,
    ):
        assert [model.id for model in client.models.list()] == ["echo", "other"]
        messages: Any = [{"role": "user", "content": "say:hello"}]
        whole = client.chat.completions.create(model="echo", messages=messages, logprobs=True, top_logprobs=1)
        assert whole.choices[0].message.content == "hello"
        assert whole.choices[0].logprobs is not None
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        stream = client.chat.completions.create(
            model="echo", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello"
        assert chunks[-1].usage is not None
        text = client.completions.create(model="echo", prompt=["say:a", "say:b"], max_tokens=4)
        assert [choice.text for choice in text.choices] == ["a", "b"]
        vectors = client.embeddings.create(model="echo", input=["ab", "c"])  # asks for base64
        assert len(vectors.data[0].embedding) == 3
        answer = client.responses.create(model="echo", input="say:fine", store=False)
        assert answer.output_text == "fine"
        with client.responses.stream(model="echo", input="say:fine") as events:
            types = [event.type for event in events]
            assert events.get_final_response().output_text == "fine"
        assert types[0] == "response.created"
        assert types[-1] == "response.completed"


def test_the_openai_client_sees_errors_as_its_own(start: Start, listen: Listen) -> None:
    with listen(start(keys=("key-of-the-test",))) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="key-of-the-test", max_retries=0)
        messages: Any = [{"role": "user", "content": "say:a"}]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=messages)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=messages, temperature=-1)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another").models.list()
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "!fail"}])
        client.close()


def test_the_openai_client_calls_tools(start: Start, listen: Listen) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages: Any = [{"role": "user", "content": 'say:[{"name": "f", "arguments": {"x": 1}}]'}]
    with listen(start({"max_model_len": 1024})) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked: Any = {"model": "echo", "messages": messages, "tools": tools, "tool_choice": "required"}
        with client.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        assert final.choices[0].finish_reason == "tool_calls"
        (call,) = final.choices[0].message.tool_calls or ()
        assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"x": 1})


def test_pieces_come_while_the_answer_goes_on(start: Start, listen: Listen) -> None:
    served = start({"pace": 0.01, "max_model_len": 100_000})
    with listen(served) as url, connect(url) as client:
        with client.stream("POST", CHAT, json=user("!long", stream=True)) as response:
            lines = response.iter_lines()
            for _ in range(6):
                next(lines)
            assert served.loop.num_open == 1
        until(lambda: served.loop.num_open == 0)
        engine: Any = served.loop._engine
        until(lambda: not engine.requests)
        assert len(engine.aborted) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request(start: Start, listen: Listen, stream: bool) -> None:
    served = start({"pace": 0.001, "max_model_len": 100_000})
    engine: Any = served.loop._engine
    with listen(served) as url, connect(url) as client:
        for word in ("!long", "!wait"):
            with send(url, CHAT, json.dumps(user(word, stream=stream)).encode()) as connection:
                until(lambda: bool(engine.requests))
                if stream and word == "!long":
                    assert connection.recv(100)
            until(lambda: not engine.requests)
        assert len(engine.aborted) == 2
        metrics = client.get("/metrics").text
        assert 'pegboard_requests_aborted_total{cause="disconnect"} 2' in metrics
        assert client.post(CHAT, json=user("say:a")).json()["choices"][0]["message"]["content"] == "a"


def test_comments_keep_a_waiting_stream_alive(start: Start, listen: Listen) -> None:
    served = start(keep_alive=0.05)
    with listen(served) as url, connect(url) as client:
        with client.stream("POST", CHAT, json=user("!wait", stream=True)) as response:
            lines = [line for line, _ in zip(response.iter_lines(), range(5), strict=False) if line]
        assert set(lines) == {": keep-alive"}


def test_an_error_after_the_first_event_becomes_the_last_one(start: Start, listen: Listen) -> None:
    served = start(keep_alive=0.05)
    with listen(served) as url, connect(url) as client:
        with client.stream("POST", CHAT, json=user("!wait", stream=True)) as response:
            lines = response.iter_lines()
            assert next(lines) == ": keep-alive"
            served.loop._loop.call_soon_threadsafe(served.loop.end_all, "the server is shutting down")
            rest = [line for line in lines if line.startswith("data: ")]
        assert json.loads(rest[0].removeprefix("data: "))["error"]["message"] == "the server is shutting down"
        assert rest[-1] == "data: [DONE]"


def test_the_openai_client_raises_on_an_error_in_a_stream(start: Start, listen: Listen) -> None:
    served = start({"pace": 0.01, "max_model_len": 100_000})
    with listen(served) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        messages: Any = [{"role": "user", "content": "!long"}]
        stream = client.chat.completions.create(model="echo", messages=messages, stream=True)
        next(iter(stream))
        served.loop._loop.call_soon_threadsafe(served.loop.end_all, "the server is shutting down")
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass


def test_a_dead_engine(start: Start, listen: Listen) -> None:
    served = start()
    with listen(served) as url, connect(url) as client:
        assert client.get("/ready").status_code == 200  # the first request has been answered
        assert client.post(CHAT, json=user("!die")).status_code == 500
        for _ in range(3):
            client.post(CHAT, json=user("say:a"))
        until(lambda: not served.loop.alive)
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 503
        response = client.post(CHAT, json=user("say:a"))
        assert response.status_code == 503
        assert "secret" not in response.text
        assert client.get("/metrics").status_code == 200


def test_slow_bodies_are_not_waited_for(start: Start, listen: Listen) -> None:
    served = start(limits=Limits(body_seconds=0.2))
    with listen(served) as url, send(url, "/v1/completions", b'{"prompt":', length=14) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")  # the rest never comes


def test_adapters_and_the_cache_on_a_listener_of_their_own(start: Start, listen: Listen) -> None:
    served = start(keys=("key-of-the-test",))
    headers = {"authorization": "Bearer key-of-the-test"}
    with listen(served, admin=True) as (url, other):
        with connect(other) as stranger:
            assert stranger.get("/adapters").status_code == 401
        with (
            httpx.Client(base_url=url, headers=headers, timeout=300) as client,
            httpx.Client(base_url=other, headers=headers, timeout=300) as admin,
        ):
            assert client.post("/adapters/load", json={"name": "a", "folder": "/x"}).status_code == 404
            assert admin.post("/adapters/load", json={"name": "tuned", "folder": "/x"}).json() == {
                "adapters": {"tuned": "/x"}
            }
            assert "loaded already" in admin.post("/adapters/load", json={"name": "tuned", "folder": "/x"}).text
            assert admin.post("/adapters/load", json={"name": "echo", "folder": "/x"}).status_code == 400
            cards = client.get("/v1/models").json()["data"]
            assert [(card["id"], card["parent"]) for card in cards] == [
                ("echo", None),
                ("other", None),
                ("tuned", "echo"),
            ]
            assert client.post(CHAT, json=user("say:a", model="tuned")).json()["model"] == "tuned"
            engine: Any = served.loop._engine
            assert engine.seen[-1][3].adapter == "tuned"
            assert admin.post("/adapters/unload", json={"name": "tuned"}).json() == {"adapters": {}}
            assert admin.post("/adapters/unload", json={"name": "tuned"}).status_code == 400
            assert client.post(CHAT, json=user("say:a", model="tuned")).status_code == 404
            assert admin.post("/cache/reset").status_code == 200
            assert engine.calls == ["reset_cache"]


def test_many_at_once(start: Start, listen: Listen) -> None:
    served = start({"max_model_len": 512, "max_num_seqs": 16})

    async def ask() -> list[str]:
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=64), timeout=300) as client:
            bodies = [user(f"say:answer {number}", stream=number % 2 == 0) for number in range(120)]
            responses = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
        return [text_of(response) for response in responses]

    with listen(served) as url:
        assert asyncio.run(ask()) == [f"answer {number}" for number in range(120)]


def text_of(response: httpx.Response) -> str:
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["message"]["content"])
    values = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return "".join(json.loads(value)["choices"][0]["delta"].get("content", "") for value in values[:-1])
