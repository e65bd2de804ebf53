"""Asking a model for commands, and counting those that are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 48
"""Tokens of an answer; the longest command has fewer."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody says, and the command that is meant."""

    said: str
    meant: dict[str, Any]


def read_wishes(path: Path) -> list[Wish]:
    """Return the wishes of a file with the fields `instruction` and `response`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Wish(row["instruction"], json.loads(row["response"])) for row in rows]


def ask(model: str, wishes: Sequence[Wish]) -> list[str]:
    """Return a model's most likely answer to each wish. The model is loaded, asked and let go of."""
    from pegboard_engine import LLM, SamplingParams

    with LLM(model, dtype="float32", kv_memory="256MiB", max_model_len=512) as llm:
        conversations = [[{"role": "user", "content": wish.said}] for wish in wishes]
        generations = llm.chat(conversations, SamplingParams(max_tokens=LONGEST, temperature=0.0))
    return [generation.outputs[0].text.strip() for generation in generations]


def is_right(answer: str, wish: Wish) -> bool:
    """Whether an answer is the command that was meant and nothing else."""
    try:
        return bool(json.loads(answer) == wish.meant)
    except (ValueError, RecursionError):
        return False


def count_right(answers: Sequence[str], wishes: Sequence[Wish]) -> int:
    """Return how many answers are right."""
    return sum(is_right(answer, wish) for answer, wish in zip(answers, wishes, strict=True))
