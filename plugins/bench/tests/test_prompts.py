"""Prompts from everywhere."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.errors import ConfigError, DataError
from pegboard_bench.prompts import Prompt, cycled, drawn, named, read_file, read_range
from pegboard_engine.workloads import WORKLOADS


def test_named_goes_on_with_the_next_seed() -> None:
    found = list(islice(named("batch32", 3), 40))
    expected = WORKLOADS["batch32"].requests(3) + WORKLOADS["batch32"].requests(4)
    assert [(prompt.content, prompt.output) for prompt in found] == expected[:40]
    assert all(prompt.whole for prompt in found)


def test_drawn_lengths() -> None:
    found = list(islice(drawn(0, (3, 5), (7, 9), text=False), 200))
    assert {prompt.num_tokens for prompt in found} == {3, 4, 5}
    assert {prompt.output for prompt in found} == {7, 8, 9}
    words = next(drawn(0, (4, 4), (7, 7), text=True))
    assert isinstance(words.content, str)
    assert len(words.content.split()) == 4
    assert words.num_tokens == 0


def test_forms_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "d"}]
    rows = ["a", [1, 2], {"prompt": "b", "max_tokens": 5}, {"prompt": [3]}, {"text": "c"}, {"messages": chat}]
    rows.append({"conversations": [{"from": "human", "value": "e"}, {"from": "gpt", "value": "f"}]})
    rows.append({"conversations": []})
    expected = [
        Prompt("a", 9),
        Prompt([1, 2], 9),
        Prompt("b", 5),
        Prompt([3], 9),
        Prompt("c", 9),
        Prompt(chat, 9),
        Prompt("e", 9),
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_file(str(path), 9) == expected
    path.write_text(json.dumps(rows, indent=1))
    assert read_file(str(path), 9) == expected
    path.write_text("[1, 2]\n[3]")
    assert [prompt.content for prompt in read_file(str(path), 9)] == [[1, 2], [3]]
    path.write_text("[1, 2]")
    assert [prompt.content for prompt in read_file(str(path), 9)] == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompt"),
        ('"a"\n{', "line 2: "),
        ('{"question": "a"}', "entry 1 holds no prompt"),
        ('"a"\n""', "entry 2 holds no prompt"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens is True"),
        ('{"prompt": [1, "b"]}', "entry 1 holds no prompt"),
        ('{"conversations": "x"}', "entry 1 holds no prompt"),
        ('{"conversations": [3]}', "entry 1 holds no prompt"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_file(str(path), 9)
    with pytest.raises(DataError, match="cannot be read"):
        read_file(str(tmp_path / "none"), 9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "messages", "text", "conversations", "conversation", "role", "max_tokens"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    try:
        prompts = read_file(str(path), 9)
    except DataError:
        return
    assert prompts
    assert all(prompt.content and prompt.output > 0 for prompt in prompts)


def test_cycled() -> None:
    prompts = [Prompt(str(number), 1) for number in range(5)]
    found = list(islice(cycled(prompts, 0), 10))
    assert found[:5] == found[5:]
    assert sorted(prompt.content for prompt in found[:5]) == list("01234")  # type: ignore[type-var]


def test_read_range() -> None:
    assert read_range("--x", "12") == (12, 12)
    assert read_range("--x", "3:12") == (3, 12)
    for text in ("", "0", "5:3", "a", "3:", ":3"):
        with pytest.raises(ConfigError, match=r"--x .* is no length"):
            read_range("--x", text)
