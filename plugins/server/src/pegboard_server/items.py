"""The items of a response while they come, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pegboard.interfaces.parser import Parsed
from pegboard_server.answers import new_id

Event = dict[str, Any]


class Items:
    """One item is open at a time: text, reasoning or a call; when another kind of piece comes it is closed.

    done: the items that are complete. Every method returns the events that it makes, without their numbers.
    """

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._kind = ""

    def push(self, pieces: Sequence[Parsed]) -> Iterator[Event]:
        """Add pieces of an answer."""
        for piece in pieces:
            if piece.reasoning:
                yield from self._grow("reasoning", piece.reasoning)
            if piece.content:
                yield from self._grow("message", piece.content)
            if piece.tool is not None:
                if self._kind != f"call {piece.tool}":
                    yield from self.close()
                    yield from self._open(f"call {piece.tool}", _call(piece.name))
                yield from self._call(piece.arguments)

    def close(self, status: str = "completed") -> Iterator[Event]:
        """Complete the open item."""
        item, self._item = self._item, None
        if item is None:
            return
        index = len(self.done)
        where = {"item_id": item["id"], "output_index": index}
        item["status"] = status
        if item["type"] == "function_call":
            yield {"type": "response.function_call_arguments.done", **where, "arguments": item["arguments"]}
        else:
            (part,) = item["content"]
            name = "output_text" if item["type"] == "message" else "reasoning_text"
            extra: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            yield {"type": f"response.{name}.done", **where, "content_index": 0, "text": part["text"], **extra}
            yield {"type": "response.content_part.done", **where, "content_index": 0, "part": dict(part)}
        self.done.append(item)
        self._kind = ""
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _grow(self, kind: str, text: str) -> Iterator[Event]:
        if self._kind != kind:
            yield from self.close()
            yield from self._open(kind, _message() if kind == "message" else _reasoning())
        assert self._item is not None
        part = self._item["content"][0]
        part["text"] += text
        name = "output_text" if kind == "message" else "reasoning_text"
        extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield {"type": f"response.{name}.delta", **self._where, "content_index": 0, "delta": text, **extra}

    def _call(self, arguments: str) -> Iterator[Event]:
        assert self._item is not None
        self._item["arguments"] += arguments
        if arguments:
            yield {"type": "response.function_call_arguments.delta", **self._where, "delta": arguments}

    def _open(self, kind: str, item: dict[str, Any]) -> Iterator[Event]:
        self._item, self._kind = item, kind
        part = item.get("content", [None])[0]
        bare = {**item, "content": []} if part is not None else dict(item)
        yield {"type": "response.output_item.added", "output_index": len(self.done), "item": bare}
        if part is not None:
            yield {"type": "response.content_part.added", **self._where, "content_index": 0, "part": dict(part)}

    @property
    def _where(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.done)}


def _message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": [part]}


def _reasoning() -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": ""}
    return {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": [part]}


def _call(name: str) -> dict[str, Any]:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "in_progress",
        "call_id": new_id("call"),
        "name": name,
        "arguments": "",
    }
