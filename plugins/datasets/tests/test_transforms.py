"""Rows to ids, with a tokenizer whose ids are bytes."""

from __future__ import annotations

from typing import Any

import pytest

from pegboard.errors import DataError
from pegboard_datasets.chat import Chat, Instruct
from pegboard_datasets.options import ChatOptions, InstructOptions, PlainOptions
from pegboard_datasets.plain import PlainText

USER = {"role": "user", "content": "two and two?"}
RIGHT = {"role": "assistant", "content": "four"}
WRONG = {"role": "assistant", "content": "five"}


def learned(row: Any, tokenizer: Any) -> str:
    """The text of the tokens to be learned, markers left out."""
    return str(tokenizer.decode([i for i, wanted in zip(row.input_ids, row.mask, strict=True) if wanted]))


@pytest.mark.parametrize(("learn", "expected"), [("assistant", "fivefour"), ("last", "four"), ("all", None)])
def test_what_is_learned_of_a_conversation(tiny_tokenizer: Any, learn: Any, expected: str | None) -> None:
    (row,) = Chat(ChatOptions(learn=learn))({"messages": [USER, WRONG, USER, RIGHT]}, tiny_tokenizer)
    assert len(row.mask) == len(row.input_ids)
    if expected is None:
        assert all(row.mask)
    else:
        assert learned(row, tiny_tokenizer) == expected


def test_messages_may_have_another_name(tiny_tokenizer: Any) -> None:
    (row,) = Chat(ChatOptions(messages="turns"))({"turns": [USER, RIGHT]}, tiny_tokenizer)
    assert learned(row, tiny_tokenizer) == "four"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"mesages": []}, r"no field 'messages' \(did you mean 'mesages'\?\); the row has: mesages"),
        ({}, "the row has: none"),
        ({"messages": []}, "must be a list of messages, found an empty list"),
        ({"messages": "hi"}, "found str"),
        ({"messages": [USER, "hi"]}, r"messages\[1\] must be an object, found str"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content must be text, found nothing"),
        ({"messages": [{"role": 1, "content": "x"}]}, r"messages\[0\]\.role must be text, found int"),
        ({"messages": [USER]}, "no message has the role 'assistant'"),
    ],
)
def test_a_bad_conversation_is_described(tiny_tokenizer: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Chat(ChatOptions())(row, tiny_tokenizer)


def test_a_request_and_its_answer_are_a_conversation(tiny_tokenizer: Any) -> None:
    options = InstructOptions(prompt="question", response="answer", context="about", system="be brief")
    (row,) = Instruct(options)({"question": "sum?", "about": "two, two", "answer": "four"}, tiny_tokenizer)
    text = tiny_tokenizer.decode(row.input_ids)
    assert text.index("be brief") < text.index("sum?\n\ntwo, two") < text.index("four")
    assert learned(row, tiny_tokenizer) == "four"
    (plain,) = Instruct(InstructOptions())({"instruction": "sum?", "input": "", "response": "four"}, tiny_tokenizer)
    (chat,) = Chat(ChatOptions())({"messages": [{"role": "user", "content": "sum?"}, RIGHT]}, tiny_tokenizer)
    assert plain == chat


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a", "reply": "b"}, "no field 'response'; the row has: instruction, reply"),
        ({"instruction": 3, "response": "b"}, "field 'instruction' must be text, found int"),
        ({"instruction": "a", "input": ["x"], "response": "b"}, "field 'input' must be text, found list"),
    ],
)
def test_a_bad_request_is_described(tiny_tokenizer: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Instruct(InstructOptions())(row, tiny_tokenizer)


def test_every_token_of_a_plain_text_is_learned(tiny_tokenizer: Any) -> None:
    (row,) = PlainText(PlainOptions(field="body"))({"body": "hello"}, tiny_tokenizer)
    assert row.input_ids == [*tiny_tokenizer.encode("hello"), tiny_tokenizer.eos_ids[0]]
    assert all(row.mask)
    (open_end,) = PlainText(PlainOptions(end=False))({"text": "hello"}, tiny_tokenizer)
    assert open_end.input_ids == tiny_tokenizer.encode("hello")


def test_a_tokenizer_without_template_is_told(tiny_tokenizer: Any) -> None:
    class Bare(type(tiny_tokenizer)):  # type: ignore[misc]
        has_chat_template = False

    with pytest.raises(DataError, match="no chat template") as caught:
        Chat(ChatOptions())({"messages": [USER, RIGHT]}, Bare())
    assert "data.format=text" in str(caught.value.fix)
