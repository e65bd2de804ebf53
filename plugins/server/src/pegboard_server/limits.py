"""The cost model: what a request asks for is weighed before anything is allocated for it."""

from __future__ import annotations

import json
from typing import Any

from pegboard.types import GrammarSpec
from pegboard_server.errors import ApiError, bad_request
from pegboard_server.options import Limits
from pegboard_server.schemas.base import Sampling
from pegboard_server.schemas.chat import Tool


def check_sampling(body: Sampling, limit: Limits, vocab_size: int) -> None:
    """Raise ApiError naming the first field that is too large, or that names no token."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    _count("n", body.n or 1, limit.answers)
    _count("stop", len(stops), limit.stop)
    for text in stops:
        if not 1 <= len(text) <= limit.stop_chars:
            raise bad_request(f"stop: a text of {len(text)} characters; 1 to {limit.stop_chars} are allowed", "stop")
    bias = body.logit_bias or {}
    for name, size in (
        ("logit_bias", len(bias)),
        ("stop_token_ids", len(body.stop_token_ids or ())),
        ("allowed_token_ids", len(body.allowed_token_ids or ())),
        ("bad_words", sum(map(len, body.bad_words or ()))),
    ):
        _count(name, size, limit.ids)
    if body.bad_words and not all(body.bad_words):
        raise bad_request("bad_words: an empty text can never be left out", "bad_words")
    if body.allowed_token_ids is not None and not body.allowed_token_ids:
        raise bad_request("allowed_token_ids: at least one token must be allowed", "allowed_token_ids")
    wrong = [key for key in bias if not (key.isascii() and key.isdigit() and int(key[:12]) < vocab_size)]
    if wrong:
        raise bad_request(f"logit_bias: {wrong[0][:40]!r} is not a token id below {vocab_size}", "logit_bias")
    for name in ("stop_token_ids", "allowed_token_ids"):
        for token in getattr(body, name) or ():
            if token >= vocab_size:
                raise bad_request(f"{name}: {token} is not a token id below {vocab_size}", name)


def check_logprobs(count: int | None, limit: Limits, name: str) -> None:
    """Raise ApiError when more of the most probable tokens are asked for than may be."""
    _count(name, count or 0, limit.logprobs)


def check_grammar(spec: GrammarSpec, limit: Limits) -> None:
    """Raise ApiError for a schema or grammar that is too large, too deep or (a schema) no JSON object."""
    if len(spec.value) > limit.schema_bytes:
        raise bad_request(f"a schema or grammar has at most {limit.schema_bytes} characters", code="grammar_too_large")
    if spec.kind == "json_schema":
        try:
            schema = json.loads(spec.value)
        except (ValueError, RecursionError):
            raise bad_request("the schema is not JSON") from None
        if not isinstance(schema, (dict, bool)):
            raise bad_request("the schema must be a JSON object")
        check_depth(schema, limit.schema_depth, "the schema")
    if (spec.kind == "choice" and not (choices := json.loads(spec.value))) or (spec.kind == "choice" and "" in choices):
        raise bad_request("a choice needs at least one text, and none that is empty")


def check_tools(tools: list[Tool], limit: Limits) -> None:
    """Raise ApiError for tools that are too many, too large together, too deep, or share a name."""
    _count("tools", len(tools), limit.tools)
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("tools: two functions have the same name", "tools")
    for tool in tools:
        check_depth(tool.function.parameters, limit.schema_depth, "tools: the parameters of a function")
    size = len(json.dumps([tool.model_dump() for tool in tools]))
    if size > limit.schema_bytes:
        raise bad_request(f"tools: {size} characters of JSON, at most {limit.schema_bytes} are allowed", "tools")


def check_depth(value: Any, depth: int, what: str) -> None:
    """Raise ApiError for JSON nested deeper than `depth`. Walks without recursion."""
    level = [value]
    for _ in range(depth + 1):
        items = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [inner for item in items for inner in item]
        if not level:
            return
    raise bad_request(f"{what} is nested deeper than {depth} levels", code="too_deep")


def answer_tokens(
    asked: int | None, prompts: list[int], answers: int, *, max_model_len: int, limit: Limits, default: int | None
) -> list[int]:
    """Return the longest output of each prompt, in tokens.

    asked: max_tokens of the request. prompts: their lengths. default: where none was asked for, at most what fits; None for all of it.
    Raises ApiError when a prompt with its answer exceeds the context, or all together the limit of a request.
    """
    total = limit.tokens or max(16 * max_model_len, 1 << 20)
    found = []
    for length in prompts:
        room = max_model_len - length
        if room < max(asked or 1, 1):
            raise ApiError(
                400,
                f"the context has {max_model_len} tokens; the prompt has {length} and {max(asked or 1, 1)} were asked for",
                code="context_length_exceeded",
            )
        found.append(asked if asked is not None else min(room, default or room))
    if asked is None:
        share = max((total - sum(prompts)) // (answers * len(prompts)), 1)
        found = [min(count, share) for count in found]
    cost = sum(prompts) + answers * sum(found)
    if cost > total:
        raise ApiError(
            400, f"prompts and answers come to {cost} tokens; a request may have {total}", code="too_many_tokens"
        )
    return found


def _count(name: str, size: int, most: int) -> None:
    if size > most:
        raise bad_request(f"{name}: {size} is too much, at most {most} is allowed", name)
