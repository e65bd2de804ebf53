"""The HTTP server as a target: its ASGI application in this process, over the real engine with the tiny model."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pegboard.errors import ConfigError
from pegboard_sdk.fuzz.requests import VALID, Request, make_request
from pegboard_sdk.fuzz.target import Target

ENGINE = {
    "use": "paged",
    "max_model_len": 64,
    "page_size": 4,
    "kv_memory": 1 << 19,
    "max_num_seqs": 8,
    "max_num_tokens": 64,
}
LIMITS = {"answers": 4, "prompts": 16, "template_seconds": 2.0}
PATIENCE = 60.0
"""Seconds until everything that a request held must be free again."""


class Refused(ConfigError):
    """The server answered that the request is at fault, as it should."""


class HttpServer(Target):
    """Every answer is below 500 and in OpenAI's shape, every stream ends, and nothing is held afterwards.

    The server's modules are named, not imported, at the top: nobody needs a server for the other targets.
    """

    name, file, share = "http", "request.http", 0.1
    package: ClassVar[str] = "pegboard_server"

    def missing(self) -> str:
        if find_spec(self.package) is None:
            return "pegboard-server is not installed"
        found = any(
            record.name == ENGINE["use"] and record.status == "ok" for record in self.registry.records("engine")
        )
        return "" if found else f"no engine {ENGINE['use']!r} is installed"

    def make(self, seed: int) -> bytes:
        if seed == 0:  # what is read first, so that all is made that a valid request needs
            method, path, body = VALID[8]
            data = json.dumps(body).encode()
            return Request(
                method, path, ((b"host", b"localhost"), (b"content-type", b"application/json")), data
            ).encode()
        return make_request(random.Random(seed)).encode()

    def prepare(self) -> None:
        if hasattr(self, "_loop"):
            return
        from pegboard.plugins.doors import import_object
        from pegboard_sdk.toys.model import random_model
        from pegboard_sdk.toys.tokenizer import TinyTokenizer

        def part(name: str) -> Any:
            return import_object(f"{self.package}.{name}")

        tokenizer = TinyTokenizer()
        engine = self.registry.create("engine", ENGINE)
        engine.load(random_model(dtype="float32", phase="decode"), tokenizer, self.registry)
        options = part("options:ServerOptions")(names=("toy",), limits=part("options:Limits")(**LIMITS))
        self._served = part("serving:make_served")(self.registry, engine, tokenizer, options)
        self._app = part("app:create_app")(self._served)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._start(part("serving:warm_up")))

    def read(self, path: Path, seed: int) -> None:
        self.prepare()
        request, source = Request.decode(path.read_bytes()), random.Random(seed + 1)
        # One client in ten goes away: in its own body, or in the answer.
        leaves = source.choice(("body", "answer")) if source.random() < 0.1 and seed else ""
        client = Client(request, source, leaves)
        self._loop.run_until_complete(client.run(self._app))
        self._loop.run_until_complete(self._idle())
        client.check()

    def close(self) -> None:
        """Stop the server."""
        if hasattr(self, "_loop"):
            self._loop.run_until_complete(self._served.loop.stop())
            self._served.renderer.close()
            self._loop.close()
            del self._loop

    async def _start(self, warm_up: Callable[[Any], Awaitable[None]]) -> None:
        self._served.loop.start()
        await warm_up(self._served)

    async def _idle(self) -> None:
        """Raise AssertionError when something is still held after a while."""
        served, end = self._served, time.monotonic() + PATIENCE
        while True:
            stats = served.loop.stats()
            held = {
                "pages": stats.held_pages,
                "running": stats.running,
                "waiting": stats.waiting,
                "open": served.loop.num_open,
                "admitted": served.admission.inside,
            }
            if not any(held.values()):
                break
            assert time.monotonic() < end, f"still held after {PATIENCE:g} s: {held}"
            await asyncio.sleep(0.001)
        assert served.loop.alive, "the engine has died"


class Client:
    """Speaks ASGI for one request. leaves: "body" or "answer", where it goes away in the middle of one."""

    def __init__(self, request: Request, source: random.Random, leaves: str) -> None:
        self.request, self.leaves = request, leaves
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.answer = b""
        self.complete = False
        self._pieces = _cut(request.body, source)
        self._gone = asyncio.Event()

    async def run(self, app: Any) -> None:
        """Send the request and keep the answer."""
        path, _, query = self.request.path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.request.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": list(self.request.headers),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        try:
            await app(scope, self._receive, self._send)
        except ConnectionAbortedError:  # what is left to a server when an answer fails that has begun
            self.complete = True
            raise AssertionError("the answer broke off") from None

    async def _receive(self) -> dict[str, Any]:
        if self._pieces:
            piece = self._pieces.pop(0)
            if self.leaves == "body" and not self._pieces:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "a second beginning"
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            assert self.status, "a body before its beginning"
            assert not self.complete, "more after the end"
            self.answer += message.get("body", b"")
            self.complete = not message.get("more_body", False)
            if self.leaves == "answer":
                self._gone.set()

    def check(self) -> None:
        """Raise AssertionError for an answer that should not be, Refused for one that tells of a mistake."""
        if self.leaves:
            return
        assert self.status, "no answer"
        assert self.complete, "the answer has no end"
        assert self.status < 500, f"{self.status}: {self.answer[:300]!r}"
        kind = self.headers.get(b"content-type", b"").partition(b";")[0]
        if self.status >= 400:
            if self.request.method != "HEAD":
                _check_error(json.loads(self.answer), self.status)
            raise Refused(f"{self.status}", fix="")
        if kind == b"application/json" and self.request.method != "HEAD":
            json.loads(self.answer, parse_constant=_no_number)
        if kind == b"text/event-stream":
            _check_events(self.answer)


def _cut(body: bytes, source: random.Random) -> list[bytes]:
    """Return a body in the pieces that it comes in."""
    cuts = sorted(source.randint(0, len(body)) for _ in range(source.choice((0, 0, 0, 1, 3))))
    return [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def _check_error(body: Any, status: int) -> None:
    assert isinstance(body, dict), f"{status}: an error that is no object: {body!r}"
    error = body.get("error")
    assert isinstance(error, dict), f"{status}: no error in {body!r}"
    assert isinstance(error.get("message"), str) and error["message"], f"{status}: no message in {body!r}"
    assert isinstance(error.get("type"), str), f"{status}: no type in {body!r}"
    assert {"param", "code"} <= set(error), f"{status}: param and code are not there in {body!r}"
    assert "Traceback" not in error["message"], f"{status}: the inside of the server in {body!r}"


def _check_events(answer: bytes) -> None:
    last = ""
    for block in answer.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
                event = {} if last == "[DONE]" else json.loads(last, parse_constant=_no_number)
                error = event.get("error")
                assert not (isinstance(error, dict) and error.get("type") == "server_error"), f"a failure: {last[:300]}"
    assert last == "[DONE]" or "response." in last, f"the stream ends with {last[:300]!r}"


def _no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")
