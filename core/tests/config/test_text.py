"""YAML to plain JSON values and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.config.compose import Composed
from pegboard.config.resolve import resolve_references
from pegboard.config.text import MAX_BYTES, MAX_DEPTH, dump_config, dump_tree, parse_config, parse_value
from pegboard.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["no", "1e-3", "0x10", "010", "1_000", "~", "", "${a}", "\\${a}", "\\\\${", "1:30", "2020-01-01"])
)
JSON = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)
PRINTABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["C", "Z"])),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("a1 .-", min_size=1), v, max_size=3),
    max_leaves=8,
)
TREES = st.dictionaries(st.text(), JSON, max_size=4)


@given(TREES)
def test_a_dumped_tree_loads_to_an_equal_one(tree: dict[str, Any]) -> None:
    assert same(parse_config(dump_tree(tree), "x"), tree)


@given(TREES)
def test_a_dumped_config_resolves_to_itself(tree: dict[str, Any]) -> None:
    """What a run wrote re-runs exactly, also where a value holds the characters of a reference."""
    assert same(resolve_references(Composed(parse_config(dump_config(tree), "x")), "x"), tree)


@given(PRINTABLE)
def test_json_is_a_value_of_an_override(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert same(parse_value(text, "x"), value)


@given(st.text())
def test_text_that_looks_like_nothing_else_is_text(text: str) -> None:
    looks = text.strip()[:1] in ("[", "{", '"', "'") or _is_scalar(text.strip())
    if not looks:
        assert parse_value(text, "x") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5", -1.5),
        ("1e-3", 0.001),
        ("2.0e-4", 0.0002),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", ""),
        ("no", "no"),
        ("0x10", "0x10"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("a=b=c", "a=b=c"),
        ("https://x.org/?a=1#b", "https://x.org/?a=1#b"),
        ("a, b", "a, b"),
        ("x: y", "x: y"),
        ("# no comment", "# no comment"),
        ("*.json", "*.json"),
        ("&a", "&a"),
        ("!tag", "!tag"),
        ("[1, a=b, 'c, d', [2]]", [1, "a=b", "c, d", [2]]),
        ("{a: 1, b: {c: 2}}", {"a": 1, "b": {"c": 2}}),
        ("'1'", "1"),
        ('"a\\nb"', "a\nb"),
        ("[]", []),
        ("{}", {}),
    ],
)
def test_values_of_overrides(text: str, value: Any) -> None:
    found = parse_value(text, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("a: ???\nb: {c: ???, d: [???, 1]}", {"a": "???", "b": {"c": "???", "d": ["???", 1]}}),
        ("a: {b: ???}", {"a": {"b": "???"}}),
        (
            "a: yes\nb: 1e-3\nc: 0o7\nd: 1:30\ne: 2020-01-01",
            {"a": "yes", "b": 0.001, "c": "0o7", "d": "1:30", "e": "2020-01-01"},
        ),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("'1': 2", {"1": 2}),
    ],
)
def test_files(text: str, value: Any) -> None:
    assert parse_config(text, "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "x, line 2, column 1: the key 'a' stands twice"),
        ("a: [1, 2\n", "x, line 2, column 1"),
        ("a: &x 1\nb: *x\n", "aliases are not allowed"),
        ("a: !!python/object:os.system x\n", "the tag 'tag:yaml.org,2002:python/object:os.system' is not allowed"),
        ("a: !!binary aGk=\n", "is not allowed"),
        ("a: !mine 1\n", "the tag '!mine' is not allowed"),
        ("1: a\n", "a key must be text (quote it)"),
        ("[a]: 1\n", "a key must be text"),
        ("null: 1\n", "a key must be text"),
        ("<<: {a: 1}\nb: 2\n", None),
        ("- a\n", "x holds a list, expected keys and values"),
        ("just text", "x holds a str"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: \x00\n", "x, character 3"),
        ("\ta: 1", "line 1, column 1"),
        ("a: " + "9" * 5000, "x: "),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ("{" * 5000, f"nested more than {MAX_DEPTH} deep"),
        ("#" * (MAX_BYTES + 1), "longer than"),
    ],
)
def test_files_that_are_refused(text: str, message: str | None) -> None:
    if message is None:
        assert parse_config(text, "x") == {"<<": {"a": 1}, "b": 2}
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x")
    assert message in caught.value.message
    assert caught.value.fix


@given(st.text(alphabet="ab?:-,[]{}#&*!|>'\"%@`~ \n\t\\$0.", max_size=40))
def test_any_text_gives_a_tree_or_a_config_error(text: str) -> None:
    try:
        tree = parse_config(text, "x")
    except ConfigError:
        return
    assert same(parse_config(dump_tree(tree), "x"), tree)


def test_nan_is_refused() -> None:
    with pytest.raises(ConfigError, match="nan"):
        dump_config({"a": [float("nan")]})


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, types and the sign of zero included."""
    return repr(a) == repr(b)


def _is_scalar(text: str) -> bool:
    if text in ("~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE"):
        return True
    try:
        float(text.lower().replace(".inf", "inf"))
    except ValueError:
        return False
    return True
