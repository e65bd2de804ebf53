"""The two languages of arguments against Python's own readers, and any text in any pieces."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.interfaces.parser import OutputParser
from pegboard_parsers.hermes import Hermes
from pegboard_parsers.jsontext import DONE, Broken, JsonText
from pegboard_parsers.llama import Llama
from pegboard_parsers.mistral import Mistral
from pegboard_parsers.pythonic import Pythonic
from pegboard_parsers.pythontext import PythonText
from pegboard_parsers.think import Think

few = settings(max_examples=60, deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
arguments = st.dictionaries(texts, values, max_size=4)


def json_read(text: str) -> str | None:
    """Return the JSON that stands for `text`, None where it is none."""
    reader, told = JsonText(), ""
    try:
        for character in text:
            told += reader.feed(character)
        return told if reader.end() else None
    except Broken:
        return None


def python_read(text: str) -> Any:
    reader, told = PythonText(), ""
    for character in text + " ":
        piece, used = reader.feed(character)
        told += piece
        if reader.state == DONE and used:
            break
    return json.loads(told)


@few
@given(values, st.booleans(), st.sampled_from([None, 2]))
def test_json_comes_as_it_is(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert json_read(text) == text


@few
@given(values, st.lists(st.tuples(st.integers(0), st.sampled_from([*'{}[]",:0-1.eEtrufalsn \\/\n\t', ""])), max_size=3))
def test_json_is_what_python_takes_for_it(value: Any, changes: list[tuple[int, str]]) -> None:
    text = json.dumps(value)
    for place, put in changes:
        place %= len(text) + 1
        text = text[:place] + put + text[place + (not put) :]
    try:
        wanted = json.loads(text, strict=False)
    except ValueError:
        assert json_read(text) is None, text
    else:
        told = json_read(text)
        assert told is not None, text
        assert (
            json.loads(told) == wanted or wanted != wanted
        )  # line breaks in texts are escaped, so that others can read it


@few
@given(values, st.booleans())
def test_python_literals_become_json(value: Any, tuples: bool) -> None:
    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(changed, value)) if tuples else list(map(changed, value))
        return {key: changed(item) for key, item in value.items()} if isinstance(value, dict) else value

    text = repr(changed(value))
    assert ast.literal_eval(text) == changed(value)
    assert python_read(text) == value


@pytest.mark.parametrize(
    "text", ["[1 2]", "{1: 2}", "{'a'}", "[,]", "[1,,2]", "nope", "1.2.3", "-", "'\\xZZ'", "b'a'", "1__0"]
)
def test_what_is_no_literal_is_broken(text: str) -> None:
    with pytest.raises(Broken):
        python_read(text)


def joined(parser: OutputParser, pieces: Sequence[str]) -> tuple[str, str, list[list[str]]]:
    content, reasoning, calls = "", "", []
    for piece in [*(piece for text in pieces for piece in parser.push(text)), *parser.finish()]:
        content += piece.content
        reasoning += piece.reasoning
        if piece.name:
            assert piece.tool == len(calls)
            calls.append([piece.name, ""])
        if piece.tool is not None:
            calls[piece.tool][1] += piece.arguments
    return content, reasoning, calls


def hermes_text(calls: list[tuple[str, Any]]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in calls)


def llama_text(calls: list[tuple[str, Any]]) -> str:
    return "; ".join(json.dumps({"name": n, "parameters": a}, ensure_ascii=False) for n, a in calls)


def mistral_text(calls: list[tuple[str, Any]]) -> str:
    return "[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": a} for n, a in calls])


def mistral_new_text(calls: list[tuple[str, Any]]) -> str:
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{json.dumps(a)}" for n, a in calls)


def python_text(calls: list[tuple[str, Any]]) -> str:
    return "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls) + "]"


@pytest.mark.parametrize(
    ("factory", "write", "named"),
    [
        (Hermes, hermes_text, False),
        (Llama, llama_text, False),
        (Mistral, mistral_text, False),
        (Mistral, mistral_new_text, False),
        (Pythonic, python_text, True),
    ],
)
@few
@given(st.data())
def test_any_calls_in_any_pieces(factory: Any, write: Any, named: bool, data: st.DataObject) -> None:
    keys = st.from_regex("[a-z_][a-z0-9_]{0,5}", fullmatch=True) if named else texts
    names = st.from_regex("[a-z_]{1,8}", fullmatch=True)
    call = st.tuples(names, st.dictionaries(keys, values, max_size=3))
    calls = data.draw(st.lists(call, min_size=1, max_size=3))
    text = write(calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    content, _, found = joined(factory().parser([]), pieces)
    assert not content.strip()
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<think>",
    "</think>",
    "[f(",
    ")]",
]
MARKS += [
    "a=",
    '{"name": "f", ',
    '"arguments": ',
    '"parameters": ',
    "{}",
    "}",
    "{",
    '"',
    "'",
    "\\",
    ", ",
    "; ",
    "<|python_start|>",
    "1",
]


@pytest.mark.parametrize("factory", [Hermes, Llama, Mistral, Pythonic, Think])
@few
@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=14), st.lists(st.integers(0, 60), max_size=8))
def test_any_text_in_any_pieces(factory: Any, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    places = sorted(min(cut, len(text)) for cut in cuts)
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    found = joined(factory().parser([]), pieces)
    assert found == joined(factory().parser([]), [text])
    content, reasoning, calls = found
    if not calls and not reasoning and factory is not Think:
        assert content == text


@few
@given(texts, texts, st.integers(0, 4))
def test_reasoning_and_content_come_back(reasoning: str, content: str, cut: int) -> None:
    reasoning, content = reasoning.strip(" \t\r\n"), content.lstrip(" \t\r\n")
    text = f"<think>\n{reasoning}\n</think>\n\n{content}"
    pieces = [text[i : i + cut + 1] for i in range(0, len(text), cut + 1)]
    if "</think>" not in reasoning:
        assert joined(Think().parser([]), pieces)[:2] == (content, reasoning)


@pytest.mark.parametrize("factory", [Hermes, Llama, Mistral, Pythonic])
def test_deep_and_long_arguments(factory: Any) -> None:
    """Neither the depth nor the length of arguments is a matter of the stack, or of a square of the length."""
    deep = "[" * 5_000 + "]" * 5_000
    long = "x" * 50_000
    for value in (deep, f'"{long}"'):
        text = {
            Hermes: f'<tool_call>{{"name": "f", "arguments": {{"a": {value}}}}}</tool_call>',
            Llama: f'{{"name": "f", "parameters": {{"a": {value}}}}}',
            Mistral: f'[TOOL_CALLS]f{{"a": {value}}}',
            Pythonic: f"[f(a={value})]",
        }[factory]
        content, _, calls = joined(factory().parser([]), [text])
        assert content == "" and calls == [["f", f'{{"a": {value}}}']]
