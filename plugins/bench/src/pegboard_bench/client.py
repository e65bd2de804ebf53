"""One streamed request to a server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from pegboard.errors import ConfigError
from pegboard_bench.prompts import Prompt
from pegboard_bench.samples import Sample
from pegboard_bench.sse import EventReader, EventTooLarge

Endpoint = Literal["completions", "chat"]
PATHS: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

JSON = {"content-type": "application/json"}


class Broken(Exception):
    """An answer that is none. kind: for counting."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. url: without path. timeout: seconds that one may take. extra: fields that are added to every body.

    ignore_eos: whether to ask for answers that do not end by themselves, where a prompt wants its whole output.
    """

    url: str
    endpoint: Endpoint
    model: str
    timeout: float = 600.0
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    ignore_eos: bool = True
    verify: bool = True

    def session(self) -> aiohttp.ClientSession:
        """Return a client with as many connections as there are requests."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self.verify),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            headers=self.headers,
        )

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the body of a request. Raises ConfigError for a prompt that the endpoint does not take."""
        body: dict[str, Any] = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        content = prompt.content
        chat = isinstance(content, list) and isinstance(content[0], dict)
        if self.endpoint == "completions":
            if chat:
                raise ConfigError("a prompt is a chat, which /v1/completions does not take", fix="use --endpoint chat")
            body["prompt"] = content
        else:
            if prompt.num_tokens:
                raise ConfigError(
                    "a prompt is token ids, which /v1/chat/completions does not take",
                    fix="use --endpoint completions, or --workload random, which has words for a chat",
                )
            body["messages"] = content if chat else [{"role": "user", "content": content}]
        body |= {"max_tokens": prompt.output, "temperature": 0}
        if prompt.whole and self.ignore_eos:
            body["ignore_eos"] = True
        return {**body, **self.extra}


async def ask(session: aiohttp.ClientSession, target: Target, prompt: Prompt, planned: float) -> Sample:
    """Send a request and return what became of it; nothing but a cancellation is raised."""
    sample = Sample(planned, input_tokens=prompt.num_tokens)
    body = json.dumps(target.body(prompt)).encode()
    sample.sent = time.perf_counter()
    try:
        async with session.post(target.url + PATHS[target.endpoint], data=body, headers=JSON) as response:
            if response.status != 200:
                text = await response.content.read(4096)
                raise Broken(f"http {response.status}", _message(text))
            await _read(response, sample)
    except Broken as error:
        sample.failure, sample.detail = error.kind, error.detail
    except TimeoutError:
        sample.failure, sample.detail = "timeout", f"no whole answer within {target.timeout:g} s"
    except aiohttp.ClientConnectorError as error:
        sample.failure, sample.detail = "no connection", str(error)
    except (aiohttp.ClientError, OSError) as error:
        sample.failure, sample.detail = "connection lost", f"{type(error).__name__}: {error}"
    return sample


async def _read(response: aiohttp.ClientResponse, sample: Sample) -> None:
    """Read an answer to its end. Raises Broken when it has none."""
    if not response.content_type.startswith("text/event-stream"):
        raise Broken("no stream", f"the answer is {response.content_type}")
    reader, ended, finished = EventReader(), False, False
    async for piece in response.content.iter_any():
        now = time.perf_counter()
        try:
            events = reader.push(piece)
        except EventTooLarge as error:
            raise Broken("bad event", str(error)) from error
        for event in events:
            if event == b"[DONE]":
                ended = True
                continue
            chunk = _chunk(event)
            try:
                if usage := chunk.get("usage"):
                    sample.input_tokens = int(usage["prompt_tokens"])
                    sample.output_tokens, sample.counted = int(usage["completion_tokens"]), True
                for choice in chunk.get("choices") or ():
                    if _holds_token(choice, first=not sample.arrivals):
                        sample.arrivals.append(now)
                    finished = finished or choice.get("finish_reason") is not None
            except (AttributeError, KeyError, TypeError, ValueError):
                raise Broken("bad event", f"not of OpenAI's shape: {event[:80]!r}") from None
    if not (ended or finished):
        raise Broken("cut off", "the stream ended before the answer did")
    if not sample.arrivals:
        raise Broken("no token", "the answer is empty")
    if not sample.counted:
        sample.output_tokens = len(sample.arrivals)


def _chunk(event: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(event)
    except ValueError:
        raise Broken("bad event", f"no JSON: {event[:80]!r}") from None
    if not isinstance(chunk, dict):
        raise Broken("bad event", f"no object: {event[:80]!r}")
    if chunk.get("error"):
        raise Broken("error event", _message(event))
    return chunk


def _holds_token(choice: Mapping[str, Any], *, first: bool) -> bool:
    """Whether a piece of an answer stands for a token: not one that only tells the role, or only how the answer ended.

    A token whose text is not complete yet, or that has none, comes as an empty text from servers that send every token.
    """
    if "delta" in choice:
        delta = choice["delta"] or {}
        if any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")):
            return True
        empty = "role" not in delta and "content" in delta
    else:
        if choice.get("text"):
            return True
        empty = "text" in choice
    return empty and (first or choice.get("finish_reason") is None)


def _message(text: bytes) -> str:
    """Return the message of an error in OpenAI's shape, or the text itself."""
    try:
        error = json.loads(text)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        message = text.decode("utf-8", "replace")
    return str(message).strip()[:200]
