"""A model's chat template: conversations to text."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError

from pegboard.errors import DataError
from pegboard_tokenizers.sandbox import BUDGET, MAX_TEXT, Budget, ChatEnvironment, Refusal

MAX_TEMPLATE = 1 << 20
"""Characters of a template."""

Span = tuple[int, int]
"""The first character, and the one after the last."""


class ChatTemplate:
    """A compiled template. Safe to share between threads.

    has_generation: whether it marks what the model writes with {% generation %}.
    """

    def __init__(self, source: str, where: str) -> None:
        """Compile `source`; `where` names it in errors. Raises DataError for one that is no Jinja."""
        self._where = where
        nonce = secrets.token_hex(16)  # which no conversation holds, by chance or on purpose
        self._marks = f"\x00{nonce}<", f"\x00{nonce}>"
        if len(source) > MAX_TEMPLATE:
            raise DataError(f"{where} has {len(source)} characters; at most {MAX_TEMPLATE} are read")
        environment = ChatEnvironment()
        try:
            calls = environment.parse(source).find_all(nodes.Call)
            self.has_generation = any(isinstance(call.node, nodes.ExtensionAttribute) for call in calls)
            self._template = environment.from_string(source)
            self._marked = ChatEnvironment(self._marks).from_string(source)
        except (TemplateError, RecursionError, SyntaxError) as error:
            line = f", line {error.lineno}," if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise DataError(f"{where}{line} is not a chat template: {error}", fix="mend it, or remove it") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text. Raises DataError when the template refuses the conversation, fails or breaks a limit."""
        return self._render(self._template, variables)

    def render_spans(self, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return the text and the spans of characters that {% generation %} blocks gave. Raises as `render`."""
        text, spans, start = "", [], 0
        before, after = self._marks
        for part in re.split(f"({before}|{after})", self._render(self._marked, variables)):
            if part == before:
                start = len(text)
            elif part == after:
                spans.append((start, len(text)))
            else:
                text += part
        return text, spans

    def _render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        pieces, size = [], 0
        values = {name: plain(value, name) for name, value in variables.items()}
        try:
            for piece in template.generate({**values, BUDGET: Budget()}):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_TEXT:
                    raise SecurityError(f"its text is longer than {MAX_TEXT} characters")
        except Refusal as error:
            raise DataError(
                f"{self._where} refuses the conversation: {error}", fix="change the messages as it asks"
            ) from error
        except SecurityError as error:
            raise DataError(
                f"{self._where} was stopped: {error}", fix="use the template of an author you trust"
            ) from error
        except Exception as error:  # a stranger's template may run into anything
            raise DataError(
                f"{self._where} fails on the conversation: {type(error).__name__}: {error}",
                fix="a message may lack a field that it reads, or have a role that it does not know",
            ) from error
        return "".join(pieces)


def plain(value: Any, where: str) -> Any:
    """Return a copy made of JSON's types alone, since objects have methods that a template could call.

    Raises DataError naming the place of anything else.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise DataError(
        f"{where} is a {type(value).__name__}", fix="give a chat template texts, numbers, lists and mappings"
    )
