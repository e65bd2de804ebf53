"""What is sent: named workloads, random lengths, or prompts from a file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pegboard.errors import ConfigError, DataError
from pegboard_engine.workloads import WORKLOADS

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part place "
    "case week company system program question work government number night point home water room mother area money story fact "
    "month lot right study book eye job word business issue side kind head house service friend father power hour game line end"
).split()
"""Words that most vocabularies hold as one token each with the blank before it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request. content: token ids, a text, or the messages of a chat. output: the most tokens that are wanted.

    whole: the answer is to have all of them, whatever the model thinks.
    """

    content: list[int] | str | list[dict[str, Any]]
    output: int
    whole: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt as far as they are known: 0 for a text."""
        return len(self.content) if isinstance(self.content, list) and isinstance(self.content[0], int) else 0


def named(name: str, seed: int) -> Iterator[Prompt]:
    """Yield the requests of a workload of `pegboard_engine.workloads`, then those of its next seeds."""
    for number in count(seed):
        for ids, output in WORKLOADS[name].requests(number):
            yield Prompt(ids, output, whole=True)


def drawn(seed: int, inputs: tuple[int, int], outputs: tuple[int, int], *, text: bool) -> Iterator[Prompt]:
    """Yield requests of random lengths, bounds included: token ids, or as many words where `text` is wanted."""
    source = random.Random(seed)
    while True:
        length, output = source.randint(*inputs), source.randint(*outputs)
        if text:
            yield Prompt(" ".join(source.choices(WORDS, k=length)), output, whole=True)
        else:
            yield Prompt([source.randint(10, 10000) for _ in range(length)], output, whole=True)


def read_file(path: str, output: int) -> list[Prompt]:
    """Return the prompts of a file: lines of JSON, a JSON list, or ShareGPT's list of conversations.

    An entry is a text, a list of token ids, or an object with one of "prompt" (either of these), "messages" (of a chat), "text", or
    "conversations" (ShareGPT's, of which the first turn is the prompt); its "max_tokens" goes before `output`. Raises DataError that
    names the entry.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", fix="name a file of JSON, UTF-8") from error
    try:
        rows = _rows(text)
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", fix="write one JSON value a line, or one list") from error
    prompts = [prompt for number, row in enumerate(rows, 1) if (prompt := _prompt(path, number, row, output))]
    if not prompts:
        raise DataError(f"{path} holds no prompt", fix='write one JSON value a line, such as {"prompt": "Hello"}')
    return prompts


def cycled(prompts: list[Prompt], seed: int) -> Iterator[Prompt]:
    """Yield prompts in a random order, and again and again."""
    order = list(prompts)
    random.Random(seed).shuffle(order)
    while True:
        yield from order


def read_range(option: str, text: str) -> tuple[int, int]:
    """Return the bounds of "128" or "64:512". Raises ConfigError."""
    low, colon, high = text.partition(":")
    try:
        bounds = int(low), int(high if colon else low)
    except ValueError:
        bounds = 0, 0
    if not 0 < bounds[0] <= bounds[1]:
        raise ConfigError(
            f"{option} {text!r} is no length", fix=f"give tokens, such as {option} 128 or {option} 64:512"
        )
    return bounds


def _rows(text: str) -> list[Any]:
    try:
        whole = json.loads(text)
    except ValueError:
        return _lines(text)
    if isinstance(whole, list) and not _are_ids(whole):
        return whole
    return [whole]


def _are_ids(content: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in content)


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return rows


def _prompt(path: str, number: int, row: Any, output: int) -> Prompt | None:
    """Return the prompt of an entry; None for a conversation without a turn, of which ShareGPT has some."""
    content = row
    if isinstance(row, Mapping):
        given = row.get("max_tokens", output)
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise DataError(f"{path}, entry {number}: max_tokens is {given!r}", fix="give a number above 0")
        output = given
        if "conversations" in row or "conversation" in row:
            turns = row.get("conversations", row.get("conversation"))
            if not turns:
                return None
            content = turns[0].get("value") if isinstance(turns, list) and isinstance(turns[0], Mapping) else None
        else:
            content = next((row[key] for key in ("prompt", "messages", "text") if key in row), None)
    if isinstance(content, str) and content:
        return Prompt(content, output)
    if isinstance(content, list) and content:
        if _are_ids(content) or all(isinstance(item, dict) and "role" in item for item in content):
            return Prompt(content, output)
    raise DataError(
        f"{path}, entry {number} holds no prompt: {json.dumps(row)[:80]}",
        fix='write a text, a list of token ids, {"prompt": …}, {"messages": […]} or {"conversations": […]}',
    )
