"""Kind `parser`: the text of an answer, told apart into content, reasoning and tool calls while it comes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of text added.

    content, reasoning: text. tool: index of the tool call that name (with its first piece) and arguments (text of JSON, in pieces)
    belong to; None when the piece is no part of a call.
    """

    content: str = ""
    reasoning: str = ""
    tool: int | None = None
    name: str = ""
    arguments: str = ""


class OutputParser(ABC):
    """Parses one answer. The joined result does not depend on how the text was cut into pieces, and no text is lost: what turns out
    to be no call after all comes as content.
    """

    @abstractmethod
    def push(self, text: str) -> Sequence[Parsed]:
        """Add text and return what is certain with it."""

    @abstractmethod
    def finish(self) -> Sequence[Parsed]:
        """End the answer and return what was held back."""


class ParserFactory(ABC):
    """Makes parsers of one format. Constructed without options.

    The front door says what it does in its capabilities: {"parses": "tools"} or {"parses": "reasoning"}; and {"templates": [...]},
    texts of which one stands in the chat template of every model that writes this format, for an automatic choice.
    """

    @abstractmethod
    def parser(self, tools: Sequence[Mapping[str, Any]], *, prompt: str = "") -> OutputParser:
        """Return a parser for one answer.

        tools: the functions that the request offered (OpenAI's shape); empty for none.
        prompt: the text that the answer goes on from, or the end of it, since a template may write the first marker of an answer
        itself; empty where it is not known.
        """
