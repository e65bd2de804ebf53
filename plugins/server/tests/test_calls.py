"""Forced calls: their grammar, and reading them in pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pegboard.interfaces.parser import OutputParser, Parsed
from pegboard_server.calls import ForcedCall, ForcedCalls, call_grammar

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=5), VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


def run(parser: OutputParser, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """Return content and calls (name, arguments) of a text that comes in pieces."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces: list[Parsed] = []
    for begin, end in itertools.pairwise(places):
        pieces += parser.push(text[begin:end])
    pieces += parser.finish()
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.tool is not None:
            call = calls.setdefault(piece.tool, ["", ""])
            call[0] += piece.name
            call[1] += piece.arguments
    return "".join(p.content for p in pieces), [(n, a) for _, (n, a) in sorted(calls.items())]


@given(CALLS, st.lists(st.integers(0, 10**6), max_size=12), st.sampled_from([None, 1]), st.booleans(), st.booleans())
def test_calls_in_any_pieces(
    calls: list[tuple[str, dict[str, Any]]], cuts: list[int], indent: int | None, first: bool, plain: bool
) -> None:
    keys = ("name", "arguments") if first else ("arguments", "name")
    values = [{key: call[0] if key == "name" else call[1] for key in keys} for call in calls]
    text = json.dumps(values, indent=indent, ensure_ascii=plain)
    content, found = run(ForcedCalls(), text, cuts)
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@given(st.text(), st.lists(st.integers(0, 10**6), max_size=6))
def test_text_that_is_no_list_is_content(text: str, cuts: list[int]) -> None:
    body = "x" + text
    assert run(ForcedCalls(), body, cuts) == (body, [])


@given(st.text(), st.lists(st.integers(0, 10**6), max_size=6))
def test_any_text_is_survived(text: str, cuts: list[int]) -> None:
    assert run(ForcedCalls(), "[{" + text, cuts) == run(ForcedCalls(), "[{" + text, [])


def test_calls_that_are_cut_keep_what_came() -> None:
    content, calls = run(ForcedCalls(), '[{"name": "f", "arguments": {"a": [1, "x', [])
    assert (content, calls) == ("", [("f", '{"a": [1, "x')])


def test_one_named_call() -> None:
    assert run(ForcedCall("f"), '{"a": 1}', [2, 5]) == ("", [("f", '{"a": 1}')])
    assert run(ForcedCall("f"), "", []) == ("", [("f", "")])


def test_references_move_with_their_schema() -> None:
    node = {"$ref": "#"}
    tools = [
        {"function": {"name": "a", "parameters": {"properties": {"next": node, "x": {"$ref": "#/$defs/x"}}}}},
        {"function": {"name": "b"}},
    ]
    schema = json.loads(call_grammar(tools, "required", parallel=True).value)
    assert schema["$defs"]["0"]["properties"] == {"next": {"$ref": "#/$defs/0"}, "x": {"$ref": "#/$defs/0/$defs/x"}}
    assert schema["$defs"]["1"] == {"type": "object"}
    names = [each["properties"]["name"]["const"] for each in schema["items"]["anyOf"]]
    assert names == ["a", "b"]
