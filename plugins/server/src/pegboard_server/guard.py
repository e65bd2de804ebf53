"""What every request passes before a route sees it: a number, the key, the size of its body; and the last net for exceptions."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pegboard_server.errors import ApiError, internal, unavailable
from pegboard_server.metrics import Metrics
from pegboard_server.options import Limits
from pegboard_server.security import Keys, host_name

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def is_text(body: bytes) -> bool:
    """Whether a body of JSON is UTF-8 and its escapes are whole characters.

    Python reads JSON in other encodings too, and halves of surrogate pairs, which no tokenizer and no answer can hold.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    if b"\0" in body:
        return False
    if b"\\ud" not in body and b"\\uD" not in body:
        return True
    pending = -1  # where the second half of a pair must begin
    for found in _ESCAPE.finditer(body):
        code = int(found[1], 16) if found[1] else 0
        if (0xDC00 <= code < 0xE000) != (pending >= 0) or pending not in (-1, found.start()):
            return False
        pending = found.end() if 0xD800 <= code < 0xDC00 else -1
    return pending == -1


class Guard:
    """An ASGI application around another.

    open_paths: routes that need no key. hosts: names that the Host header may have while there are no keys; None for all. This keeps
    web pages of strangers, whose names may be made to point here, away from a server that only its own machine should reach.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        limits: Limits,
        metrics: Metrics,
        open_paths: Collection[str],
        hosts: Collection[str] | None,
    ) -> None:
        self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics
        self._held = 0
        self._open, self._hosts = frozenset(open_paths), None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: uvicorn answers the handshake with 403
            await send({"type": "websocket.close"})
            return
        answer = _Answer(send, f"req-{secrets.token_hex(12)}")
        try:
            self._admit(scope)
            with self._hold() as hold:
                body = await self._body(scope, receive, hold)
                await self._app(scope, body, answer.send)
        except ApiError as error:
            await answer.fail(error, scope, receive)
        except Exception as error:
            await answer.fail(internal(error), scope, receive)
        finally:
            route = getattr(scope.get("route"), "path", None) or "none"
            self._metrics.responses.add(route=route, status=str(answer.status or 499))

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._hosts is not None and not self._keys and host_name(headers.get(b"host", b"")) not in self._hosts:
            raise ApiError(403, "this name is not one of the server's", code="unknown_host")
        if scope["path"] in self._open and scope["method"] in ("GET", "HEAD"):
            return
        number = self._keys.admit(headers.get(b"authorization"))
        if number is None:
            raise ApiError(
                401,
                "a key is needed: send the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        scope.setdefault("state", {})["key"] = number

    @contextmanager
    def _hold(self) -> Iterator[Callable[[int], None]]:
        """Give a function that counts bytes of bodies which are held in memory, until the block is left."""
        mine = 0

        def hold(count: int) -> None:
            nonlocal mine
            mine += count
            self._held += count
            if self._held > self._limits.held_bytes:
                raise unavailable("too many large bodies are here at once")

        try:
            yield hold
        finally:
            self._held -= mine

    async def _body(self, scope: Scope, receive: Receive, hold: Callable[[int], None]) -> Receive:
        """Read the body and return a `receive` that gives it in one piece."""
        limit = self._limits.body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the client has gone")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    more = message.get("more_body", False)
                    if size > limit:
                        raise _too_large(limit)
                    hold(len(chunks[-1]))
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._limits.body_seconds:g} s") from None
        body = b"".join(chunks)
        if not is_text(body):
            raise ApiError(400, "the body is not JSON in UTF-8, or holds half of a character")
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again


class _Answer:
    """Adds our headers, and knows whether an answer has begun."""

    def __init__(self, send: Send, number: str) -> None:
        self._send, self._number, self.status = send, number, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self._number.encode()), *HEADERS]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)

    async def fail(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answer with an error, unless an answer is on its way already: then the connection is all that can be ended."""
        if self.status:
            raise ConnectionAbortedError(error.message)
        await error.response()(scope, receive, self.send)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
