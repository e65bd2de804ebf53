"""A tokenizer of bytes: an id is a byte of UTF-8, or one of four markers."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.errors import DataError
from pegboard.interfaces.tokenizer import TextStream, Tokenizer, TokenizerLoader
from pegboard.types import Message

BOS, EOS, PAD, TURN = 256, 257, 258, 259
_MARKERS = {BOS: "<bos>", EOS: "<eos>", PAD: "<pad>", TURN: "<turn>"}


class TinyTokenizer(Tokenizer):
    """No file is needed. A chat turn is `<turn>role\\ncontent<eos>`."""

    vocab_size = 260
    bos_id: int | None = BOS
    eos_ids: tuple[int, ...] = (EOS,)
    pad_id: int | None = PAD
    has_chat_template = True

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        ids = list(text.encode())
        return [BOS, *ids] if special else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        stream = self.stream(skip_special=skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, *, skip_special: bool = True) -> TextStream:
        return _Bytes(skip_special)

    def token_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id]) if token_id < BOS else None

    def chat_text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the turns with their markers written out; `encode` does not read markers, `chat` does not need it to."""
        ids = self.chat(messages, tools=tools, generation_prompt=generation_prompt, variables=variables)
        return self.decode(ids, skip_special=False)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        if tools:
            raise DataError("the tiny tokenizer has no tools", fix="leave them out")
        ids = [i for message in messages for i in (TURN, *f"{message.role}\n{message.content}".encode(), EOS)]
        return [*ids, TURN, *b"assistant\n"] if generation_prompt else ids

    def chat_with_mask(
        self,
        messages: Sequence[Message],
        *,
        roles: str = "assistant",
        tools: Sequence[Mapping[str, Any]] | None = None,
        start: int = 0,
    ) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        for index, message in enumerate(messages):
            turn = self.chat([message], tools=tools, generation_prompt=False)
            head = 2 + len(message.role.encode())
            learned = {"all": True, "assistant": message.role == "assistant", "last": index == last}[roles]
            ids += turn
            learned = learned and index >= start
            mask += [learned and (roles == "all" or i >= head) for i in range(len(turn))]
        return ids, mask

    def files(self) -> Mapping[str, bytes]:
        return {}


class TinyTokenizerLoader(TokenizerLoader):
    """Loads the tiny tokenizer, whatever the files."""

    def load(self, files: Mapping[str, bytes], config: Mapping[str, Any]) -> TinyTokenizer:
        return TinyTokenizer()


class _Bytes(TextStream):
    def __init__(self, skip_special: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skip = skip_special

    def push(self, token_id: int) -> str:
        if token_id < BOS:
            return self._decoder.decode(bytes([token_id]))
        return self.flush() + ("" if self._skip else _MARKERS[token_id])

    def flush(self) -> str:
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
