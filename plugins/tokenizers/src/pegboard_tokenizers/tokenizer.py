"""The tokenizer itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.tokenizer import TextStream, Tokenizer
from pegboard_tokenizers.mask import assistant_spans, token_mask
from pegboard_tokenizers.stream import make_stream, make_token_bytes

if TYPE_CHECKING:
    import tokenizers

    from pegboard.types import Message
    from pegboard_tokenizers.template import ChatTemplate, Span

LEARN = ("assistant", "last", "all")


class HfTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library with the chat templates of its model."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        decoder: Mapping[str, Any] | None,
        texts: Mapping[str, str],
        bos_id: int | None,
        eos_ids: tuple[int, ...],
        pad_id: int | None,
        templates: Mapping[str, tuple[str, str]],
        files: Mapping[str, bytes],
    ) -> None:
        """decoder: as tokenizer.json describes it. texts: special tokens by role. templates: source and file by name."""
        self.vocab_size = core.get_vocab_size(with_added_tokens=True)
        self.bos_id, self.eos_ids, self.pad_id = bos_id, eos_ids, pad_id
        self._core, self._decoder, self._texts, self._files = core, decoder, dict(texts), dict(files)
        self._sources = dict(templates)
        self._compiled: dict[str, ChatTemplate] = {}
        added = core.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self._bytes = make_token_bytes(decoder, self.decode)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return ids. Special tokens written out in `text` become those tokens. Raises DataError for what is no text."""
        ids: list[int] = self._encoding(text, special).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text; ids beyond the vocabulary (padded rows of a head) give none."""
        text: str = self._core.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def stream(self, *, skip_special: bool = True) -> TextStream:
        """Return a decoder for one text. See `pegboard_tokenizers.stream` for what it holds back."""

        def decode(ids: Sequence[int]) -> str:
            return self.decode(ids, skip_special=skip_special)

        def token_of(index: int) -> str | None:
            return None if skip_special and index in self._special else self._core.id_to_token(index)

        return make_stream(self._decoder, decode, token_of)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes that an id adds after another one; None for special tokens and ids beyond the vocabulary.

        Raises DataError for a decoder that is not known to work token by token.
        """
        token = None if token_id in self._special else self._core.id_to_token(token_id)
        return None if token is None else self._bytes(token, token_id)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's files hold a template."""
        return bool(self._sources)

    def chat_text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the conversation. A template named "tool_use" is taken when there are tools.

        variables: further names for the template (enable_thinking, say). Raises DataError as the interface says.
        """
        return self._template(tools).render(self._names(messages, tools, generation_prompt, variables))

    def chat_with_mask(
        self,
        messages: Sequence[Message],
        *,
        roles: str = "assistant",
        tools: Sequence[Mapping[str, Any]] | None = None,
        start: int = 0,
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of the conversation and what to learn of its messages from `start` on.

        With {% generation %} in the template the blocks decide, else `pegboard_tokenizers.mask`. A token that only
        partly belongs to the assistant is learned. Raises ConfigError for an unknown `roles`, DataError where the
        assistant's text cannot be told.
        """
        if roles not in LEARN:
            raise ConfigError(f"{roles!r} is to be learned of a conversation", fix=f"use one of: {', '.join(LEARN)}")
        if roles == "all" and not start:
            ids = self.chat(messages, tools=tools, generation_prompt=False)
            return ids, [True] * len(ids)
        if roles == "last":
            start = max((i for i, m in enumerate(messages) if m.role == "assistant" and i >= start), default=start)
        template = self._template(tools)
        if roles == "all":
            text, spans = self._after(messages, start, tools)
        elif template.has_generation:
            text, spans = template.render_spans(self._names(messages, tools, False, None))
            if start:
                spans = spans[len(template.render_spans(self._names(messages[:start], tools, False, None))[1]) :]
        else:
            text, spans = self._compared(messages, start, tools)
        encoding = self._encoding(text, special=False)
        return encoding.ids, token_mask(spans, encoding.offsets)

    def files(self) -> Mapping[str, bytes]:
        """Return the tokenizer's own files as they were read."""
        return dict(self._files)

    def _encoding(self, text: str, special: bool) -> tokenizers.Encoding:
        try:
            return self._core.encode(text, add_special_tokens=special)
        except Exception as error:  # the library raises bare exceptions
            shown = ascii(text if len(text) <= 80 else text[:80] + "…")
            raise DataError(
                f"the text {shown} has no token ids: {error}", fix="correct or leave out the text"
            ) from error

    def _after(
        self, messages: Sequence[Message], start: int, tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[str, list[Span]]:
        """Return the text and the span of all that comes after the first `start` messages."""
        text = self.chat_text(messages, tools=tools, generation_prompt=False)
        before = self.chat_text(messages[:start], tools=tools, generation_prompt=False) if start else ""
        if not text.startswith(before):
            raise DataError(
                f"the chat template renders the first {start} messages differently when they stand alone, so that one "
                "cannot tell where the rest begins",
                fix="learn the assistant's turns only",
            )
        return text, [(len(before), len(text))]

    def _compared(
        self, messages: Sequence[Message], start: int, tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[str, list[Span]]:
        def render(some: Sequence[Message], generation_prompt: bool) -> str:
            return self.chat_text(some, tools=tools, generation_prompt=generation_prompt)

        wanted = [index for index, message in enumerate(messages) if message.role == "assistant" and index >= start]
        markers = sorted(filter(None, self._special.values()), key=len, reverse=True)
        return render(messages, False), assistant_spans(messages, wanted, render, markers)

    def _names(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return what a template may read. A field that is None is left out of its message: templates test for it."""
        turns = [{**m.extras, "role": m.role, "content": m.content} for m in messages]
        return {
            **self._texts,
            "documents": None,
            **(variables or {}),
            "messages": [{key: value for key, value in turn.items() if value is not None} for turn in turns],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": generation_prompt,
        }

    def _template(self, tools: Sequence[Mapping[str, Any]] | None) -> ChatTemplate:
        """Return the template, compiled at first use (which two threads may do at once, to the same end)."""
        from pegboard_tokenizers.template import ChatTemplate

        if not self._sources:
            raise DataError(
                "the model's tokenizer has no chat template",
                fix="use a model made for chat, or plain text instead of messages",
            )
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise DataError(
                f"the model has chat templates only for: {', '.join(sorted(self._sources))}",
                fix="add chat_template.jinja",
            )
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(*self._sources[name])
        return self._compiled[name]
