"""The mask: exactly the assistant's turns, whichever way they are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import ConfigError, DataError
from pegboard.types import Message
from pegboard_tokenizers.loader import Loader
from pegboard_tokenizers.mask import token_mask
from pegboard_tokenizers.tokenizer import HfTokenizer

MakeFiles = Callable[..., dict[str, bytes]]

CHAT = [
    Message("system", "be brief"),
    Message("user", "Hi"),
    Message("assistant", "Ho \U0001f9be"),
    Message("user", "the dog?"),
    Message("assistant", " a fox"),
]
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
# As in models that think: the thoughts of turns before the last question are dropped, and an empty thought is added.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}<think>{{ '\n\n' }}</think>\n{% endif %}{{ answer }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2: nothing stands between the question and the answer, and a system text is part of the first question.
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% elif m.role == 'assistant' %}"
    "{{ ' ' + m.content | trim + ' ' + eos_token }}{% elif not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)


def learned(tokenizer: HfTokenizer, messages: Sequence[Message], roles: str = "assistant", start: int = 0) -> list[str]:
    """Return the texts of runs of learned tokens, having checked the ids."""
    ids, mask = tokenizer.chat_with_mask(messages, roles=roles, start=start)
    assert ids == tokenizer.chat(messages, generation_prompt=False)
    assert len(mask) == len(ids)
    runs: list[list[int]] = [[]]
    for index, wanted in zip(ids, mask, strict=True):
        if wanted:
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special=False) for run in runs if run]


@pytest.fixture(scope="module")
def make(make_files: MakeFiles) -> Callable[..., HfTokenizer]:
    return lambda template, **settings: Loader().load(make_files(template=template, **settings), {})


@pytest.mark.parametrize("template", ["CHATML", GENERATION])
def test_turns_with_their_end_marker(make: Callable[..., HfTokenizer], chatml: str, template: str) -> None:
    tokenizer = make(chatml if template == "CHATML" else template)
    assert learned(tokenizer, CHAT) == ["Ho \U0001f9be<|im_end|>", " a fox<|im_end|>"]
    assert learned(tokenizer, CHAT, "last") == [" a fox<|im_end|>"]
    assert learned(tokenizer, CHAT[:4], "last") == ["Ho \U0001f9be<|im_end|>"]
    assert learned(tokenizer, CHAT, "all") == [tokenizer.chat_text(CHAT, generation_prompt=False)]
    assert learned(tokenizer, CHAT[:2]) == learned(tokenizer, CHAT[:2], "last") == []


@pytest.mark.parametrize("template", ["CHATML", GENERATION])
def test_of_context_nothing_is_learned(make: Callable[..., HfTokenizer], chatml: str, template: str) -> None:
    tokenizer = make(chatml if template == "CHATML" else template)
    assert learned(tokenizer, CHAT, start=2) == ["Ho \U0001f9be<|im_end|>", " a fox<|im_end|>"]
    for roles in ("assistant", "last"):
        assert learned(tokenizer, CHAT, roles, start=3) == [" a fox<|im_end|>"]
        assert learned(tokenizer, CHAT, roles, start=5) == []
    whole, context = (tokenizer.chat_text(some, generation_prompt=False) for some in (CHAT, CHAT[:3]))
    assert learned(tokenizer, CHAT, "all", start=3) == [whole.removeprefix(context)]


def test_context_that_cannot_be_told_is_an_error(make: Callable[..., HfTokenizer]) -> None:
    with pytest.raises(DataError, match="renders the first 2 messages differently when they stand alone"):
        make("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}").chat_with_mask(
            CHAT, roles="all", start=2
        )


def test_spaces_at_the_beginning_are_learned(make: Callable[..., HfTokenizer], chatml: str) -> None:
    tokenizer = make(chatml)
    for content in (" ", "  x", "\n\nx", "x \n"):
        assert learned(tokenizer, [Message("user", "q"), Message("assistant", content)])[0].endswith(
            f"{content}<|im_end|>"
        )


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=3))
def test_any_conversation(make: Callable[..., HfTokenizer], chatml: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = make(chatml)
    messages = [m for question, answer in turns for m in (Message("user", question), Message("assistant", answer))]
    _, mask = tokenizer.chat_with_mask(messages)
    prompt = tokenizer.chat_text(messages[:-1])
    through = tokenizer.chat_text(messages, generation_prompt=False)
    assert through.startswith(prompt)
    # Byte-level tokens do not cross the line break before an answer unless it begins with white space.
    if all(answer[:1].isprintable() and not answer[:1].isspace() for _, answer in turns):
        count = len(tokenizer.encode(prompt, special=False))
        assert not mask[count - 1] and all(mask[count:-1]) and not mask[-1]
    assert sum(mask) >= len(turns)


def test_turns_of_a_template_that_drops_thoughts(make: Callable[..., HfTokenizer]) -> None:
    tokenizer = make(THINKING)
    chat = [*CHAT[:2], Message("assistant", "<think>\nhm\n</think>\n\nHo"), *CHAT[3:]]
    assert learned(tokenizer, chat) == ["Ho<|im_end|>", "<think>\n\n</think>\n a fox<|im_end|>"]


def test_turns_without_a_prompt_of_their_own(make: Callable[..., HfTokenizer]) -> None:
    tokenizer = make(INSTRUCT)
    assert learned(tokenizer, CHAT[1:]) == [" Ho \U0001f9be <|im_end|>", " a fox <|im_end|>"]


def test_turns_without_an_end_marker(make: Callable[..., HfTokenizer]) -> None:
    assert learned(make(PLAIN), CHAT[1:]) == ["Ho \U0001f9be\n", " a fox\n"]


def test_a_turn_that_comes_first(make: Callable[..., HfTokenizer], chatml: str) -> None:
    assert learned(make(chatml), CHAT[2:4]) == ["Ho \U0001f9be<|im_end|>"]
    refusing = "{% if not messages %}{{ raise_exception('none') }}{% endif %}" + chatml
    assert learned(make(refusing), CHAT[2:4]) == ["Ho \U0001f9be<|im_end|>"]


def test_tool_calls_are_learned(make: Callable[..., HfTokenizer]) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    calls = [{"name": "f", "arguments": {}}]
    messages = [Message("user", "do"), Message("assistant", "", {"tool_calls": calls}), Message("tool", "3")]
    assert learned(make(template), messages) == [json.dumps(calls) + "<|im_end|>"]


def test_turns_that_cannot_be_told_are_an_error(make: Callable[..., HfTokenizer]) -> None:
    counting = "{{ messages | length }}{% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(DataError, match=r"(?s)message 2 \(assistant\).*generation"):
        make(counting).chat_with_mask(CHAT)
    empty = [Message("user", "a"), Message("assistant", ""), Message("user", "b")]
    with pytest.raises(DataError, match=r"message 1 \(assistant\)"):
        make(THINKING).chat_with_mask(empty)


def test_unknown_roles(make: Callable[..., HfTokenizer], chatml: str) -> None:
    with pytest.raises(ConfigError, match="assistant, last, all"):
        make(chatml).chat_with_mask(CHAT, roles="user")


def test_several_blocks_of_the_last_turn(make: Callable[..., HfTokenizer]) -> None:
    template = (
        "{% for m in messages %}[{% if m.role == 'assistant' %}{% generation %}one{% endgeneration %}-"
        "{% generation %}two{% endgeneration %}{% else %}{{ m.content }}{% endif %}]{% endfor %}"
    )
    assert learned(make(template), CHAT) == ["one", "two", "one", "two"]
    assert learned(make(template), CHAT, "last") == ["one", "two"]


@pytest.mark.parametrize(
    ("spans", "offsets", "expected"),
    [
        ([], [(0, 1)], [False]),
        ([(1, 3)], [(0, 1), (1, 2), (2, 3), (3, 4)], [False, True, True, False]),
        ([(1, 3)], [(0, 2), (2, 4)], [True, True]),
        ([(1, 3), (3, 4), (6, 6)], [(0, 1), (1, 4), (4, 6), (6, 7)], [False, True, False, False]),
        ([(1, 3)], [(0, 0), (1, 1), (2, 2), (3, 3)], [False, True, True, False]),
        ([(0, 2)], [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3)], [True, True, True, True, False]),
    ],
)
def test_tokens_that_overlap(
    spans: list[tuple[int, int]], offsets: list[tuple[int, int]], expected: list[bool]
) -> None:
    assert token_mask(spans, offsets) == expected
