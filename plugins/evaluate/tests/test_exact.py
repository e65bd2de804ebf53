from __future__ import annotations

import json
from pathlib import Path

import pytest

from pegboard.errors import DataError
from pegboard_evaluate.exact import Question, judge, last_number, marked, number, read_questions

SUM = Question("how many?", "6 + 6 = <<6+6=12>>12 eggs\n#### 12", "12")
BIG = Question("how much?", "#### 1,234.50", "1,234.50")
NAME = Question("who?", "Ada", "Ada")


@pytest.mark.parametrize(
    ("text", "question", "strict", "flexible"),
    [
        ("6 + 6 is 12.\n#### 12", SUM, True, True),
        ("#### 13 or so, no:\n#### 12 \nthat is it", SUM, True, True),
        ("#### $12.00", SUM, True, True),
        ("The answer is 12.", SUM, False, True),
        ("12 eggs and 3 hens", SUM, False, False),
        ("#### twelve", SUM, False, False),
        ("#### 11, since 12", SUM, False, True),
        ("", SUM, False, False),
        ("so $1,234.5!", BIG, False, True),
        ("#### 1234.50", BIG, True, True),
        (" ada.\n", NAME, True, True),
        ("Ada Lovelace", NAME, False, False),
    ],
)
def test_outputs_are_judged_by_their_mark_and_by_their_last_number(
    text: str, question: Question, strict: bool, flexible: bool
) -> None:
    assert judge(text, question) == {"strict": strict, "flexible": flexible}


def test_plain_numbers_are_compared_as_numbers() -> None:
    question = Question("2 + 2?", "4", "4")
    assert judge("4.0", question)["strict"]
    assert judge("it is 4", question) == {"strict": False, "flexible": True}


def test_numbers_in_texts() -> None:
    assert [number(text) for text in ("1,000", "$5.", "-3.5", "x", "")] == [1000.0, 5.0, -3.5, None, None]
    assert [last_number(text) for text in ("a 1 b 2,000.5.", "-7", ".5", "no")] == ["2,000.5", "-7", ".5", None]
    assert [marked(text) for text in ("a #### b ", "a", "####1\nx")] == ["b", None, "1"]


def test_questions_are_read_with_the_end_of_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": "a", "answer": "so\n#### 7"}, {"question": "b", "answer": 3}, {"question": "c", "answer": "Z"}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    found = read_questions(path)
    assert [(q.text, q.answer, q.numeric) for q in found] == [("a", "7", True), ("b", "3", True), ("c", "Z", False)]
    assert len(read_questions(path, 2)) == 2


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"question": "a"}', '{"question": 1, "answer": "b"}', '{"question": "a", "answer": null}']
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n' + line)
    with pytest.raises(DataError, match="line 2 has no question"):
        read_questions(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no questions"):
        read_questions(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "none")


def test_the_real_file_is_read() -> None:
    path = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gsm8k_test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    questions = read_questions(path)
    assert len(questions) == 1319 and all(question.numeric for question in questions)
    # Every solution answers its own question.
    assert all(judge(question.solution, question)["strict"] for question in questions)
