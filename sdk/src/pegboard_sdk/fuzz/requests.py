"""Hostile HTTP requests: valid ones, with values, fields, bytes, headers and ends that are none.

A request is bytes as they would be on the wire: a line, headers, an empty line, the body.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/x"}}, "required": ["a"]}
_SCHEMA |= {"$defs": {"x": {"enum": ["p", "q"]}}}
_TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": _SCHEMA}}
_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "n": 2, "seed": 3, "stop": ["z", "!!"], "presence_penalty": 0.5}
_SAMPLING |= {"frequency_penalty": -0.5, "logit_bias": {"65": 5}, "user": "me", "min_p": 0.1, "top_k": 5}
_SAMPLING |= {"repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": True, "stop_token_ids": [3], "priority": 1}
_SAMPLING |= {"bad_words": ["no"], "allowed_token_ids": [65, 66, 67], "skip_special_tokens": False, "cache_salt": "s"}
_MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "hi ü 🎈"}]}]
_CALLED = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
_CHAT = {"messages": _MESSAGES, "max_completion_tokens": 4}
_TOLD = {"role": "assistant", "content": None, "tool_calls": [_CALLED]}
_RESULT = {"role": "tool", "tool_call_id": "c", "content": "4"}

VALID: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("POST", "/v1/completions", {"prompt": "hello", "max_tokens": 4, "echo": True, "logprobs": 2}),
    ("POST", "/v1/completions", {"prompt": [[65, 66], [67]], "max_tokens": 3, **_SAMPLING}),
    ("POST", "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}),
    ("POST", "/v1/completions", {"prompt": [65], "max_tokens": 6, "response_format": {"type": "json_object"}}),
    ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 9, "structured_outputs": {"regex": "[a-c]{1,3}"}}),
    ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 9, "structured_outputs": {"choice": ["up", "down"]}}),
    ("POST", "/v1/completions", {"prompt": "x", "structured_outputs": {"grammar": 'start: "a" | "b" start'}}),
    ("POST", "/v1/chat/completions", {**_CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    ("POST", "/v1/chat/completions", {**_CHAT, **_SAMPLING, "logprobs": True, "top_logprobs": 2}),
    ("POST", "/v1/chat/completions", {"messages": [*_MESSAGES, _TOLD, _RESULT], "max_tokens": 3}),
    ("POST", "/v1/chat/completions", {**_CHAT, "tools": [_TOOL], "tool_choice": "required", "stream": True}),
    (
        "POST",
        "/v1/chat/completions",
        {**_CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}}},
    ),
    ("POST", "/v1/responses", {"input": "hello", "max_output_tokens": 4, "instructions": "be", "stream": True}),
    (
        "POST",
        "/v1/responses",
        {"input": [{"role": "user", "content": "a"}], "text": {"format": {"type": "text"}}, "max_output_tokens": 4},
    ),
    ("POST", "/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
    ("POST", "/v1/embeddings", {"input": [65, 66], "dimensions": 8}),
    ("POST", "/score", {"text_1": "a", "text_2": ["b", "c"]}),
    ("POST", "/tokenize", {"prompt": "hello", "add_special_tokens": False}),
    ("POST", "/tokenize", {"messages": _MESSAGES}),
    ("POST", "/detokenize", {"tokens": [65, 66, 200]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/toy", None),
    ("GET", "/metrics", None),
    ("GET", "/health", None),
    ("GET", "/ready", None),
    ("GET", "/openapi.json", None),
    ("GET", "/", None),
)

_WITH_BODY = tuple(valid for valid in VALID if valid[2] is not None)


def _deep(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {kind: value}
    return value


VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "0",
    "\x00",
    "é\u200d\U0001f600\u202e",
    "x" * 5000,
    "🎈" * 600,
    [],
    {},
    [None],
    [[]],
    [[[]]],
    ["", ""],
    list(range(5000)),
    [256, 257, 258, 259],
    [260],
    ["a"] * 3000,
    {"type": "x"},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(a+)+$"}}},
    {"type": "json_schema", "json_schema": {"schema": {"pattern": "["}}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:1/x"}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "array", "minItems": 10**9}}},
    {"type": "json_schema", "json_schema": {"schema": _deep(40, "items")}},
    {"regex": "(" * 2000},
    {"regex": "a{1000}{1000}"},
    {"regex": "(?=a)b"},
    {"choice": []},
    {"choice": ["a"] * 2000},
    {"grammar": "start: start"},
    {"grammar": 'root ::= "a"'},
    {"json": "{"},
    {str(number): number for number in range(300)},
    {"-1": 1, "1e3": 2, "٣": 3},
    _deep(50, "list"),
    _deep(600, "list"),
    _deep(600, "properties"),
)

FIELDS = (
    "prompt messages input max_tokens max_completion_tokens max_output_tokens n stream stream_options stop logprobs top_logprobs "
    "logit_bias response_format structured_outputs guided_json guided_regex guided_choice guided_grammar tools tool_choice "
    "temperature top_p top_k min_p seed echo best_of suffix model encoding_format dimensions tokens text_1 text_2 text "
    "stop_token_ids bad_words allowed_token_ids min_tokens priority cache_salt chat_template_kwargs reasoning_effort "
    "previous_response_id nonsense __proto__ user metadata"
).split()

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/plain"),
    (b"content-type", b"application/json; charset=utf-16"),
    (b"content-type", b"multipart/form-data"),
    (b"content-type", b"application/x-www-form-urlencoded"),
    (b"content-type", b"\xff\xfe"),
    (b"content-type", b""),
    (b"content-length", b"-1"),
    (b"content-length", b"99999999999999999999"),
    (b"content-length", b"x"),
    (b"content-encoding", b"gzip"),
    (b"transfer-encoding", b"chunked"),
    (b"host", b"evil.example"),
    (b"host", b"\x00"),
    (b"host", b"[::1"),
    (b"accept", b"*/" * 2000),
    (b"authorization", b"Bearer \xff"),
    (b"authorization", b"Basic " + b"A" * 4000),
    (b"traceparent", b"00-" + b"f" * 300),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"expect", b"100-continue"),
    (b"x-request-id", b"a\tb"),
    (b"cookie", b"a=b;" * 500),
    (b"origin", b"null"),
    (b"access-control-request-method", b"POST"),
)

METHODS: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW")
PATHS: tuple[str, ...] = (
    "/v1",
    "/v1/",
    "//",
    "/v1/models/../../x",
    "/v1/models/%00",
    "/%ff",
    "/v1/completions/",
    "/adapters",
    "/docs",
)
PATHS += ("/cache/reset", "/metrics?x=%zz", "/v1/models/" + "a" * 3000, "/ünï", "/v1/chat/completions?stream=true")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. path: with its query. headers: names in small letters."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def encode(self) -> bytes:
        """Return it as it would be sent."""
        lines = [
            f"{self.method} {self.path} HTTP/1.1".encode(),
            *(name + b": " + value for name, value in self.headers),
        ]
        return b"\r\n".join([*lines, b"", self.body])

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read what `encode` wrote."""
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        method, path, _ = first.decode().split(" ")
        pairs = [line.partition(b": ") for line in lines]
        return cls(method, path, tuple((name, value) for name, _, value in pairs), body)


def make_request(source: random.Random) -> Request:
    """Return a request that is valid in most of its parts."""
    method, path, body = source.choice(VALID if source.random() < 0.1 else _WITH_BODY)
    if source.random() < 0.05:
        method = source.choice(METHODS)
    if source.random() < 0.05:
        path = source.choice(PATHS)
    headers = {b"host": b"localhost", b"content-type": b"application/json"}
    if source.random() < 0.15:
        for name, value in source.sample(HEADERS, source.choice((1, 1, 2))):
            headers[name] = value
    data = b"" if body is None else _text(_spoiled(body, source), source)
    if data and source.random() < 0.2:
        data = _damaged(data, source)
    headers.setdefault(b"content-length", str(len(data)).encode())
    return Request(method, path, tuple(headers.items()), data)


def _spoiled(body: dict[str, Any], source: random.Random) -> Any:
    """Return a body with some values and fields exchanged, anywhere in it."""
    if source.random() < 0.03:
        return source.choice(VALUES)
    body = _copy(body)
    for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
        place = source.choice(_places(body))
        if source.random() < 0.3:
            place, key = body, source.choice(FIELDS)
        else:
            key = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place, dict) and key in place and source.random() < 0.15:
            del place[key]
            if not body:
                break
        else:
            place[key] = _copy(source.choice(VALUES))
    return body


def _copy(value: Any) -> Any:
    """Return a copy of JSON; `copy.deepcopy` needs too deep a stack for some of it."""
    return json.loads(json.dumps(value))


def _places(value: Any) -> list[Any]:
    """Return every list and object with something in it, the value itself first."""
    found, level = [], [value]
    while level:
        full = [item for item in level if isinstance(item, (dict, list)) and item]
        found += full
        level = [inner for item in full for inner in (item.values() if isinstance(item, dict) else item)]
    return found or [value]


def _text(value: Any, source: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=source.random() < 0.5)
    if source.random() < 0.03:
        text = text.replace('"', '"\\ud800', 1)
    if source.random() < 0.03:  # the same field twice
        text = text.replace("{", '{"model": "toy", "model": 3, ', 1)
    return text.encode("utf-8", "surrogatepass")


def _damaged(data: bytes, source: random.Random) -> bytes:
    kind, at = source.randrange(8), source.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return (
            data[:at] + source.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xf8\x88\x80\x80\x80")) + data[at:]
        )
    if kind == 2:
        return data.decode("utf-8", "replace").encode(source.choice(("utf-16", "utf-32", "utf-8-sig")))
    if kind == 3:
        return data + data[at:]
    if kind == 4:
        return b"[" * source.choice((100, 100_000)) + data
    if kind == 5:
        return data.replace(b":", b": " + b"9" * source.choice((20, 5000)) + b"e", 1)
    if kind == 6:
        return source.choice((b"", b"null", b"NaN", b"[]", b"{", b"\xef\xbb\xbf{}", b'"x"', b"1e999"))
    changed = bytearray(data)
    for _ in range(source.randint(1, 4)):
        changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)
