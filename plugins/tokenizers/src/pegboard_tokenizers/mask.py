"""Which characters of a rendered conversation the assistant wrote, and which tokens that makes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from pegboard.errors import DataError
from pegboard.types import Message
from pegboard_tokenizers.template import Span

Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to end with the beginning of an answer, to text."""


def assistant_spans(
    messages: Sequence[Message], wanted: Sequence[int], render: Render, markers: Sequence[str]
) -> list[Span]:
    """Return the spans of the assistant messages `wanted` (indices), for a template that does not mark them itself.

    A turn begins where the rendering of the messages before it, asking for an answer, ends, and ends where the
    rendering up to it ends. Where that rendering is no beginning of the whole one (templates that drop the thinking of
    earlier turns), the turn is found by what changes in the whole rendering when its content changes. What the
    template writes after the end marker, a line break say, is not part of the turn.

    markers: texts of the special tokens, longest first. Raises DataError naming the message whose text cannot be told.
    """
    full = render(messages, False)
    return [
        _by_prefix(messages, index, full, render, markers) or _by_content(messages, index, full, render, markers)
        for index in wanted
    ]


def token_mask(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Return which tokens overlap a span, given the characters of each token in order; spans are in order too.

    A token without characters of its own (an added space, say) belongs to the place where it stands.
    """
    mask, current = [], 0
    for begin, end in offsets:
        while current < len(spans) and spans[current][1] <= begin:
            current += 1
        first = spans[current][0] if current < len(spans) else end + 1
        mask.append(end > first or begin == end == first)
    return mask


def _by_prefix(
    messages: Sequence[Message], index: int, full: str, render: Render, markers: Sequence[str]
) -> Span | None:
    try:
        before = render(messages[:index], True)
        through = render(messages[: index + 1], False)
    except DataError:  # some templates refuse a conversation that begins or ends like this
        return None
    if not (full.startswith(through) and through.startswith(before)):
        return None
    tail = max(
        (through.rfind(marker) + len(marker) for marker in markers if marker in through[len(before) :]), default=0
    )
    return len(before), tail if tail and not through[tail:].strip() else len(through)


def _by_content(messages: Sequence[Message], index: int, full: str, render: Render, markers: Sequence[str]) -> Span:
    words = [letter + secrets.token_hex(16) + letter for letter in "AB"]
    variants = [
        render([*messages[:index], replace(messages[index], content=word), *messages[index + 1 :]], False)
        for word in words
    ]
    before = _common(*variants)
    after = _common(*(text[::-1] for text in variants))
    found = (
        messages[index].content.strip()
        and not messages[index].extras.get("tool_calls")
        and all(text[before : len(text) - after] == word for text, word in zip(variants, words, strict=True))
        and before + after <= len(full)
        and full[:before] == variants[0][:before]
        and full[len(full) - after :] == variants[0][len(variants[0]) - after :]
    )
    if not found:
        raise DataError(
            f"the chat template does not let one tell which text message {index} (assistant) gave: it renders the "
            "messages before it differently when they stand alone",
            fix="mark the assistant's text with {% generation %} in the template, or learn every token (data.format.learn=all)",
        )
    end = len(full) - after
    rest = full[end:]
    return before, end + next(
        (len(rest) - len(rest.lstrip()) + len(marker) for marker in markers if rest.lstrip().startswith(marker)), 0
    )


def _common(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
