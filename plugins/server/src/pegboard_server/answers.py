"""From outputs of the engine to answers in OpenAI's shapes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegboard.errors import DataError
from pegboard.interfaces.engine import FinishReason, RequestOutput, TokenLogprobs
from pegboard.interfaces.parser import Parsed
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard_server.errors import of_output
from pegboard_server.parsing import AnswerParser


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess."""
    return f"{prefix}-{secrets.token_hex(12)}"


@dataclass(slots=True)
class Envelope:
    """What all chunks of an answer begin with."""

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a chunk, or a whole answer."""
        found: dict[str, Any] = {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
        if usage is not None:
            found["usage"] = dict(usage)
        return found


@dataclass(slots=True)
class Count:
    """Tokens of a request: of each prompt once, of each answer."""

    prompts: dict[str, int] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    outputs: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, output: RequestOutput) -> None:
        """Take the totals of an output."""
        self.prompts[output.request_id] = output.num_prompt_tokens
        self.cached[output.request_id] = max(self.cached.get(output.request_id, 0), output.num_cached_tokens)
        self.outputs[output.request_id, output.index] = output.num_output_tokens

    @property
    def usage(self) -> dict[str, Any]:
        """The counts in OpenAI's shape."""
        prompt, completion = sum(self.prompts.values()), sum(self.outputs.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


@dataclass(slots=True)
class Call:
    """A tool call while it comes."""

    name: str = ""
    arguments: str = ""
    id: str = field(default_factory=lambda: new_id("call"))

    @property
    def value(self) -> dict[str, Any]:
        """The call in OpenAI's shape."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(slots=True)
class ChatAnswer:
    """One answer of a chat while it comes."""

    parser: AnswerParser
    content: str = ""
    reasoning: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None

    def take(self, output: RequestOutput) -> list[Parsed]:
        """Add an output and return what it added. Raises ApiError for an answer that failed."""
        if output.finish_reason not in (None, "stop", "length"):
            raise of_output(output)
        pieces = self.parser.push(output.text)
        if output.finish_reason is not None:
            pieces += self.parser.finish()
            self.finish = finish_reason(output.finish_reason, self.parser.called)
        for piece in pieces:
            self.content += piece.content
            self.reasoning += piece.reasoning
            if piece.tool is not None:
                call = self.calls.setdefault(piece.tool, Call())
                call.name += piece.name
                call.arguments += piece.arguments
        return pieces

    def deltas(self, pieces: Sequence[Parsed]) -> list[dict[str, Any]]:
        """Return what `take` returned as deltas of a stream."""
        found: list[dict[str, Any]] = []
        for piece in pieces:
            if piece.reasoning:
                found.append({"reasoning_content": piece.reasoning})
            if piece.content:
                found.append({"content": piece.content})
            if piece.tool is not None:
                function = {"arguments": piece.arguments}
                entry: dict[str, Any] = {"index": piece.tool, "function": function}
                if piece.name:
                    entry |= {"id": self.calls[piece.tool].id, "type": "function"}
                    entry["function"] = {"name": piece.name, **function}
                found.append({"tool_calls": [entry]})
        return found

    @property
    def message(self) -> dict[str, Any]:
        """The whole answer as a message."""
        found: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        if self.reasoning:
            found["reasoning_content"] = self.reasoning
        if self.calls:
            found["tool_calls"] = [call.value for _, call in sorted(self.calls.items())]
        return found


def finish_reason(reason: FinishReason, called: bool) -> str:
    """Return OpenAI's word for how an answer ended."""
    return "tool_calls" if called and reason == "stop" else reason


class TokenTexts:
    """Texts and bytes of single tokens, for log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}

    def of(self, token_id: int) -> tuple[str, list[int]]:
        """Return text and bytes of a token. A part of a character is text only as far as it can be."""
        if token_id not in self._known:
            text = self._tokenizer.decode([token_id], skip_special=False)
            self._known[token_id] = text, list(self._bytes(token_id, text))
        return self._known[token_id]

    def _bytes(self, token_id: int, text: str) -> bytes:
        try:
            found = self._tokenizer.token_bytes(token_id)
        except DataError:
            found = None
        return text.encode("utf-8", "replace") if found is None else found

    def chat(self, entries: Sequence[TokenLogprobs], count: int) -> list[dict[str, Any]]:
        """Return `logprobs.content` of a chat's answer; count: how many of the most probable tokens stand beside each."""
        return [
            {
                **self._entry(entry.token_id, entry.logprob),
                "top_logprobs": [self._entry(*pair) for pair in entry.top[:count]],
            }
            for entry in entries
        ]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, content = self.of(token_id)
        return {"token": text, "logprob": finite(logprob), "bytes": content}

    def completion(
        self, tokens: Sequence[int], entries: Sequence[TokenLogprobs | None], count: int, offset: int
    ) -> dict[str, Any]:
        """Return `logprobs` of a completion. tokens: the ids that stand there. offset: characters of the text before them.

        Tokens of one text share a key among the most probable ones: the greatest log-probability counts.
        """
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, entry in zip(tokens, entries, strict=True):
            text = self.of(token)[0]
            found["tokens"].append(text)
            found["text_offset"].append(offset)
            offset += len(text)
            if entry is None:
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            found["token_logprobs"].append(finite(entry.logprob))
            top: dict[str, float] = {}
            for token_id, logprob in (*entry.top[:count], (entry.token_id, entry.logprob)):
                key = self.of(token_id)[0]
                top[key] = max(top.get(key, -1e9), finite(logprob))
            found["top_logprobs"].append(top)
        return found


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, -9999.0) if logprob == logprob else -9999.0
