"""Layouts of conversations."""

from __future__ import annotations

from typing import Any

import pytest

from pegboard.errors import DataError
from pegboard.types import Message
from pegboard_datasets.chat import Chat
from pegboard_datasets.conversation import parse_dialogue, read_messages, shared_turns
from pegboard_datasets.options import ChatOptions, ShareGptOptions

ASK, ANSWER = Message("user", "two and two?"), Message("assistant", "four")


def read(value: object) -> list[Message]:
    return read_messages(value, "messages", "data.format.messages")


def test_messages_of_openai() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "and two?"}]
    assert read(
        [
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "assistant", "content": "four"},
        ]
    ) == [
        Message("user", "two and two?", {"name": "ann"}),
        Message("assistant", "", {"tool_calls": calls}),
        Message("tool", "4", {"tool_call_id": "1"}),
        ANSWER,
    ]


def test_turns_of_sharegpt(tiny_tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "two and two?"}, {"from": "gpt", "value": "four"}]
    assert read(turns) == [ASK, ANSWER]
    (row,) = Chat(ShareGptOptions(system="be brief"))({"conversations": turns}, tiny_tokenizer)
    assert row.input_ids == tiny_tokenizer.chat([Message("system", "be brief"), ASK, ANSWER], generation_prompt=False)
    (other,) = Chat(ChatOptions(messages="conversations", system="be brief"))({"conversations": turns}, tiny_tokenizer)
    assert other == row


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"from": "humn", "value": "x"}], r"messages\[0\]\.from is 'humn' \(did you mean 'human'\?\)"),
        ([{"from": "human", "text": "x"}], r"messages\[0\]\.value must be text, found nothing"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content must be text, found null"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r"messages\[0\]\.content\[0\] must be a part of type text, found image_url",
        ),
        ([{"role": "user", "content": ["x"]}], "must be a part of type text, found str"),
    ],
)
def test_what_is_wrong_is_named(value: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(value)


def test_dialogues_of_hh_rlhf() -> None:
    text = "\n\nHuman: two and two?\n\nAssistant: four\n\nor so\n\nHuman: why?\n\nAssistant:"
    expected = [ASK, Message("assistant", "four\n\nor so"), Message("user", "why?"), Message("assistant", "")]
    assert parse_dialogue(text, "chosen") == expected
    assert parse_dialogue(text.strip(), "chosen") == expected
    for bad in ("four", "four\n\nHuman: two?", ""):
        with pytest.raises(DataError, match="field 'chosen' must be a dialogue that begins with 'Human:'"):
            parse_dialogue(bad, "chosen")


def test_what_two_conversations_share() -> None:
    other = Message("assistant", "five")
    assert shared_turns([ASK, ANSWER], [ASK, other]) == 1
    assert shared_turns([ASK, ANSWER, ASK, ANSWER], [ASK, ANSWER, ASK, other]) == 3
    assert shared_turns([ASK, ANSWER, ASK, ANSWER], [ASK, other, ASK, ANSWER]) == 1
    assert shared_turns([ASK, ANSWER], [ASK, ANSWER]) == 1
    assert shared_turns([ASK, ANSWER, ASK, ANSWER], [ASK, ANSWER]) == 1
    assert shared_turns([ANSWER], [other]) == 0
