"""Kind `tokenizer`: text to ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard.types import Message


class TextStream(ABC):
    """Turns ids into text as they come; holds back bytes that are not yet a whole character."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """Add one id and return the text that is now certain (often one word, sometimes nothing)."""

    @abstractmethod
    def flush(self) -> str:
        """Return what was held back."""


class Tokenizer(ABC):
    """A loaded tokenizer. Safe to share between threads for reading."""

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None

    @abstractmethod
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return ids; `special` adds the sequence markers that the tokenizer's own post-processing adds."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`."""

    @abstractmethod
    def stream(self, *, skip_special: bool = True) -> TextStream:
        """Return a decoder for ids that come one by one; the joined pieces equal `decode` of all."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes that an id adds to the text before it; None for an id that adds none, such as a special token.

        Raises DataError where what a token adds cannot be told from the token.
        """

    @property
    @abstractmethod
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""

    @abstractmethod
    def chat_text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the chat template. Raises DataError when there is none, it refuses the messages, or it breaks its limits."""

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the ids of the rendered conversation (the template writes its own markers)."""
        text = self.chat_text(messages, tools=tools, generation_prompt=generation_prompt, variables=variables)
        return self.encode(text, special=False)

    @abstractmethod
    def chat_with_mask(
        self,
        messages: Sequence[Message],
        *,
        roles: str = "assistant",
        tools: Sequence[Mapping[str, Any]] | None = None,
        start: int = 0,
    ) -> tuple[list[int], list[bool]]:
        """Return ids and a mask that is True on the tokens to learn.

        roles: "assistant" for every assistant turn (its end marker included), "last" for the last one only, "all" for every token.
        start: the first so many messages are context, of which nothing is learned.
        """

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Return the files (tokenizer.json, tokenizer_config.json, chat_template.jinja …) that make a complete HF folder."""


class TokenizerLoader(ABC):
    """Builds a tokenizer from a model's own files."""

    @abstractmethod
    def load(self, files: Mapping[str, bytes], config: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer of `files` (name -> content, as a `ModelFiles` gives them, and generation_config.json where the
        model has one, since it may name further ids that end a text); `config` is the model's config.json.

        Raises ModelError naming the missing or damaged file.
        """
