"""The HTTP target sees what a server does wrong, and the server of this workspace does nothing of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import PegboardError
from pegboard.plugins.load import Registry
from pegboard_sdk.fuzz.requests import VALID, Request, make_request
from pegboard_sdk.fuzz.server import Client, HttpServer, Refused

FINE = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}


def test_requests_are_written_and_read() -> None:
    for seed in range(200):
        request = make_request(random.Random(seed))
        assert Request.decode(request.encode()) == request


def test_most_requests_are_json_and_some_are_not() -> None:
    bodies = [request.body for seed in range(500) if (request := make_request(random.Random(seed))).body]
    broken = 0
    for body in bodies:
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            broken += 1
    assert 10 < broken < len(bodies) / 3


def ask(
    *messages: dict[str, Any] | BaseException, kind: bytes = b"application/json", status: int = 200, leaves: str = ""
) -> Client:
    """Return a client that was answered with `messages`, after a beginning."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if status:
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for message in messages:
            if isinstance(message, BaseException):
                raise message
            await send({"type": "http.response.body", **message})

    client = Client(Request("POST", "/x?y=1", (), b'{"a": 1}'), random.Random(0), leaves)
    asyncio.run(client.run(app))
    client.check()
    return client


def body(value: Any) -> dict[str, Any]:
    return {"body": value if isinstance(value, bytes) else json.dumps(value).encode()}


def test_good_answers() -> None:
    assert ask(body({"a": 1})).status == 200
    ask(
        {"body": b"data: {}\n\n", "more_body": True},
        body(b"data: [DONE]\n\n"),
        kind=b"text/event-stream; charset=utf-8",
    )
    with pytest.raises(Refused, match="400"):
        ask(body(FINE), status=400)
    ask(body({}), status=500, leaves="answer")  # nobody saw it


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([body(FINE)], {"status": 500}, "500: "),
        ([body(FINE)], {"status": 503}, "503: "),
        ([body({"detail": "no"})], {"status": 400}, "no error in"),
        ([body([])], {"status": 404}, "that is no object"),
        ([body({"error": {**FINE["error"], "message": ""}})], {"status": 400}, "no message"),
        ([body({"error": {**FINE["error"], "message": "Traceback: x"}})], {"status": 400}, "inside of the server"),
        ([body({"error": {"message": "no", "type": "x"}})], {"status": 400}, "param and code"),
        ([body({"error": {**FINE["error"], "type": None}})], {"status": 400}, "no type"),
        ([], {}, "has no end"),
        ([], {"status": 0}, "no answer"),
        ([body({})], {"status": 0}, "before its beginning"),
        ([body({}), body({})], {}, "more after the end"),
        ([ConnectionAbortedError()], {}, "broke off"),
        ([body(b'{"a": NaN}')], {}, "NaN is no JSON"),
        ([body(b"data: {}\n\n")], {"kind": b"text/event-stream"}, "the stream ends with"),
        (
            [body(b'data: {"error": {"type": "server_error"}}\n\ndata: [DONE]\n\n')],
            {"kind": b"text/event-stream"},
            "a failure",
        ),
    ],
)
def test_bad_answers(messages: list[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        ask(*messages, **options)


def test_an_exception_of_the_application_is_a_finding() -> None:
    with pytest.raises(KeyError):
        ask(KeyError("x"))


@pytest.fixture(scope="module")
def target() -> Iterator[HttpServer]:
    made = HttpServer(Registry.discover())
    assert made.missing() == ""
    made.prepare()
    yield made
    made.close()


def test_valid_requests_are_answered(target: HttpServer, tmp_path: Path) -> None:
    path = tmp_path / target.file
    refused = []
    for method, where, value in VALID:
        data = b"" if value is None else json.dumps(value).encode()
        path.write_bytes(Request(method, where, ((b"content-type", b"application/json"),), data).encode())
        try:
            target.read(path, 0)
        except Refused:
            refused.append(where)
    # The tiny tokenizer has neither tools nor room for the answers that some of them ask for.
    assert len(refused) <= 4, refused


def test_hostile_requests(target: HttpServer, tmp_path: Path) -> None:
    path = tmp_path / target.file
    accepted = 0
    for seed in range(1, 60):
        path.write_bytes(target.make(seed))
        try:
            target.read(path, seed)
            accepted += 1
        except PegboardError:
            continue
    assert 5 < accepted < 55


def test_what_is_held_is_seen(target: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegboard_sdk.fuzz.server.PATIENCE", 0.05)
    path = tmp_path / target.file
    path.write_bytes(target.make(0))
    with target._served.admission.admit(1), pytest.raises(AssertionError, match="'admitted': 1"):
        target.read(path, 0)
    target.read(path, 0)
