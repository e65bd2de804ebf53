"""Questions whose answers are right or wrong: JSON lines as GSM8K has them (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import DataError
from pegboard.types import Message, SamplingParams
from pegboard_evaluate.scoring import answered

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM

MARK = "####"
"""What stands before the final answer of a worked solution."""

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


@dataclass(frozen=True, slots=True)
class Question:
    """text: what is asked. solution: the whole answer as the file has it. answer: what the end of it comes to."""

    text: str
    solution: str
    answer: str

    @property
    def numeric(self) -> bool:
        """Whether the answer is a number."""
        return number(self.answer) is not None


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Return the questions of a file of JSON lines `{"question": …, "answer": …}`. Raises DataError naming the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", fix="name a file of JSON lines") from None
    found: list[Question] = []
    for place, line in enumerate(lines, 1):
        if limit is not None and len(found) == limit:
            break
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, solution = row["question"], row["answer"]
        except (ValueError, KeyError, TypeError):
            text = solution = None
        if not isinstance(text, str) or not isinstance(solution, (str, int, float)):
            raise DataError(
                f"{path}, line {place} has no question with an answer", fix='write {"question": "…", "answer": "…"}'
            )
        solution = str(solution)
        found.append(Question(text, solution, solution.rpartition(MARK)[2].strip()))
    if not found:
        raise DataError(f"{path} holds no questions", fix='write lines {"question": "…", "answer": "…"}')
    return found


def number(text: str) -> float | None:
    """Return the number that a text is, commas and a dollar sign aside; None where it is none."""
    try:
        return float(text.replace(",", "").replace("$", "").rstrip(". "))
    except ValueError:
        return None


def marked(text: str) -> str | None:
    """Return what stands behind the last mark `####`, up to the end of its line; None without one."""
    _, mark, rest = text.rpartition(MARK)
    return rest.strip().partition("\n")[0].strip() if mark else None


def last_number(text: str) -> str | None:
    """Return the last number in a text, None where there is none."""
    found = NUMBER.findall(text)
    return found[-1] if found else None


def is_right(said: str | None, question: Question) -> bool:
    """Whether an answer is the one that was asked for: as a number where that is one, else letter for letter, ends and case aside."""
    if said is None:
        return False
    if question.numeric:
        return number(said) == number(question.answer)
    return said.strip().rstrip(".").casefold() == question.answer.rstrip(".").casefold()


def judge(text: str, question: Question) -> dict[str, bool]:
    """Return whether an output is right: strictly, by what it marks as its answer, and flexibly, by the last number in it too.

    Where the file marks no answers, the whole output is what counts.
    """
    if MARK not in question.solution:
        whole = is_right(text, question)
        return {"strict": whole, "flexible": whole or (question.numeric and is_right(last_number(text), question))}
    strict = is_right(marked(text), question)
    return {"strict": strict, "flexible": strict or (question.numeric and is_right(last_number(text), question))}


def prompt(llm: LLM, question: Question, shots: Sequence[Question], *, chat: bool) -> list[int]:
    """Return the ids of a prompt: worked examples, then the question; as a conversation, or as plain text."""
    if chat:
        turns = [
            Message(role, text) for shot in shots for role, text in (("user", shot.text), ("assistant", shot.solution))
        ]
        asked = question.text
        if not shots and MARK in question.solution:
            asked += f"\nThink step by step, then write the final answer behind {MARK}."
        return llm.tokenizer.chat([*turns, Message("user", asked)])
    worked = "".join(f"Question: {shot.text}\nAnswer: {shot.solution}\n\n" for shot in shots)
    return llm.tokenizer.encode(f"{worked}Question: {question.text}\nAnswer:")


def exact_match(
    llm: LLM,
    questions: Sequence[Question],
    shots: Sequence[Question] = (),
    *,
    chat: bool = False,
    max_tokens: int = 512,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the shares of right answers, and for each question what was said. Greedy; a long prompt loses its first examples."""
    # Plain text has no end of a turn: what follows the next question belongs to nobody.
    params = SamplingParams(max_tokens=max_tokens, temperature=0, stop=() if chat else ("Question:",))
    room = llm.engine.max_model_len - max_tokens
    prompts = []
    for question in questions:
        kept = list(shots)
        ids = prompt(llm, question, kept, chat=chat)
        while len(ids) > room and kept:
            kept.pop(0)
            ids = prompt(llm, question, kept, chat=chat)
        prompts.append(ids)
    rows = []
    for question, generation in zip(questions, llm.generate(prompts, params), strict=True):
        text = answered(generation).outputs[0].text
        rows.append({"question": question.text, "answer": question.answer, "output": text, **judge(text, question)})
    count = len(rows)
    figures: dict[str, float] = {
        f"exact_match_{name}": sum(bool(row[name]) for row in rows) / count for name in ("strict", "flexible")
    }
    return {**figures, "questions": count}, rows
