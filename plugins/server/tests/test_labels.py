"""Observers learn what the client called the model, which endpoint it spoke to, and which trace it is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
USER = [{"role": "user", "content": "say:a"}]


@pytest.fixture
def seen(open_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that posts, and returns the labels that the engine was given."""
    client = open_client()
    engine = client.served.loop._engine  # type: ignore[attr-defined]
    add, given = engine.add_request, []

    def listen(*args: Any) -> None:
        given.append(dict(args[3].labels))
        add(*args)

    monkeypatch.setattr(engine, "add_request", listen)

    def post(path: str, body: dict[str, Any], **headers: str) -> list[Any]:
        given.clear()
        assert client.post(path, json=body, headers=headers).status_code == 200
        return list(given)

    return post


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/chat/completions", {"messages": USER}, "chat"),
        ("/v1/chat/completions", {"messages": USER, "stream": True}, "chat"),
        ("/v1/responses", {"input": "say:a"}, "chat"),
        ("/v1/completions", {"prompt": "say:a"}, "text_completion"),
        ("/v1/embeddings", {"input": "a"}, "embeddings"),
        ("/score", {"text_1": "a", "text_2": "b"}, "score"),
    ],
)
def test_every_endpoint(seen: Callable[..., list[Any]], path: str, body: dict[str, Any], operation: str) -> None:
    assert seen(path, {"model": "other", **body}, traceparent=TRACE, tracestate="a=b") == [
        {"operation": operation, "model": "other", "traceparent": TRACE, "tracestate": "a=b"}
    ]
    assert seen(path, body) == [{"operation": operation, "model": "echo"}]


def test_each_prompt_is_labelled_and_long_headers_are_not_kept(seen: Callable[..., list[Any]]) -> None:
    found = seen("/v1/completions", {"prompt": ["say:a", "say:b"]}, traceparent=TRACE, tracestate="a" * 513)
    assert found == [{"operation": "text_completion", "model": "echo", "traceparent": TRACE}] * 2
