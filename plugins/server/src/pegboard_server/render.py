"""Conversations and texts to token ids, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.types import Message
from pegboard_server.errors import ApiError, unavailable

T = TypeVar("T")

WORKERS = 2
SHORT = 2048
"""Characters of a text that is encoded at once where it is: a thread would take longer."""


class Renderer:
    """Renders in threads of its own.

    A thread cannot be stopped: a template that takes too long holds its thread until the sandbox ends it, which counts steps and
    looks at the time with each. While all threads are held so, conversations are refused at once instead of waiting behind them.
    """

    def __init__(self, tokenizer: Tokenizer, seconds: float) -> None:
        self._tokenizer, self._seconds = tokenizer, seconds
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="pegboard-render")
        self._late = 0

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, **names: Any
    ) -> list[int]:
        """Return the ids of a conversation. names: `generation_prompt` and `variables` of `Tokenizer.chat`.

        Raises DataError for messages that the template refuses, ApiError when it takes too long.
        """
        return await self._run(lambda: self._tokenizer.chat(messages, tools=tools, **names))

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text."""
        return (await self.encode_all([text], special=special))[0]

    async def encode_all(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Return the ids of each text."""

        def encode() -> list[list[int]]:
            return [self._tokenizer.encode(text, special=special) for text in texts]

        return encode() if sum(map(len, texts)) <= SHORT else await self._run(encode)

    async def decode_all(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each list of ids, special ones included."""

        def decode() -> list[str]:
            return [self._tokenizer.decode(ids, skip_special=False) for ids in prompts]

        return decode() if sum(map(len, prompts)) <= SHORT else await self._run(decode)

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[], T]) -> T:
        if self._late >= WORKERS:
            raise unavailable("conversations that take too long to render are in the way")
        future = self._threads.submit(function)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._seconds)
        except TimeoutError:
            if future.cancel():  # it never began
                raise unavailable("too many conversations wait to be rendered") from None
            self._late += 1
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._on_time))
            raise ApiError(
                400, f"the conversation could not be rendered within {self._seconds:g} s", code="template_timeout"
            ) from None

    def _on_time(self) -> None:
        self._late -= 1
