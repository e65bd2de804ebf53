"""`key=value`, `~key`, and how configs merge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.config.overrides import apply_overrides, merge, parse_override
from pegboard.config.text import MAX_DEPTH
from pegboard.errors import ConfigError

KEYS = st.from_regex(r"[A-Za-z_][\w-]{0,3}", fullmatch=True).filter(str.isascii)
PATHS = st.lists(KEYS, min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab=,.~[]{} $#:'\"", max_size=8),
    lambda v: st.lists(v, max_size=3),
    max_leaves=4,
)
TREES = st.recursive(
    VALUES.filter(lambda v: not isinstance(v, str)),
    lambda v: st.dictionaries(KEYS.filter(lambda k: k not in ("use", "path")), v, max_size=3),
    max_leaves=6,
).map(lambda v: v if isinstance(v, dict) else {"a": v})


def write(path: list[str], value: Any) -> str:
    return f"{'.'.join(path)}={json.dumps(value)}"


def read(tree: Any, path: list[str]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


@given(TREES, PATHS, VALUES)
def test_what_is_set_is_there(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Sections are left out here: a bare string for one means a key of it."""
    if not isinstance(value, str):
        assert read(apply_overrides(tree, [write(path, value)]), path) == value


@given(PATHS, VALUES)
def test_an_override_is_a_small_config(path: list[str], value: Any) -> None:
    assert read(parse_override(write(path, value)), path) == value


@given(TREES, PATHS, VALUES.filter(lambda v: not isinstance(v, str)))
def test_what_is_deleted_is_gone_and_the_rest_is_untouched(tree: dict[str, Any], path: list[str], value: Any) -> None:
    path = ["fresh", *path]
    with_it = apply_overrides(tree, [write(path, value)])
    without = apply_overrides(with_it, [f"~{'.'.join(path)}"])
    assert path[-1] not in read(without, path[:-1])
    assert apply_overrides(without, ["~fresh"]) == tree


@given(TREES, st.lists(st.tuples(PATHS, st.integers()), max_size=4, unique_by=lambda pair: pair[0][0]))
def test_the_order_of_overrides_of_different_keys_is_free(
    tree: dict[str, Any], said: list[tuple[list[str], int]]
) -> None:
    overrides = [write(path, value) for path, value in said]
    assert apply_overrides(tree, overrides) == apply_overrides(tree, overrides[::-1])


@given(TREES, TREES)
def test_merging(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = json.dumps(base)
    merged = merge(base, over)
    assert json.dumps(base) == before
    assert set(merged) == {*base, *over}
    assert merge(merged, over) == merged
    assert merge(base, {}) == base
    assert merge({}, over) == over


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["a.b=c"], {"a": {"b": "c", "k": 1}, "l": [1, {"x": 1}]}),
        (["a.b=c=d"], {"a": {"b": "c=d", "k": 1}, "l": [1, {"x": 1}]}),
        (["a.b="], {"a": {"b": "", "k": 1}, "l": [1, {"x": 1}]}),
        (["a={b: 2}"], {"a": {"b": 2, "k": 1}, "l": [1, {"x": 1}]}),
        (["~a.k", "~l"], {"a": {}}),
        (["~a", "a.n=1"], {"l": [1, {"x": 1}], "a": {"n": 1}}),
        (["a.n=1", "~a"], {"l": [1, {"x": 1}]}),
        (["l=[2,3]"], {"a": {"k": 1}, "l": [2, 3]}),
        (["l.0=7", "l.1.y=8"], {"a": {"k": 1}, "l": [7, {"x": 1, "y": 8}]}),
        (["~l.0"], {"a": {"k": 1}, "l": [{"x": 1}]}),
        (["~l.1.x"], {"a": {"k": 1}, "l": [1, {}]}),
        (["a=3"], {"a": 3, "l": [1, {"x": 1}]}),
        (["a='b: c'"], {"a": "b: c", "l": [1, {"x": 1}]}),
        (["x.y.z=null"], {"a": {"k": 1}, "l": [1, {"x": 1}], "x": {"y": {"z": None}}}),
    ],
)
def test_examples(overrides: list[str], expected: dict[str, Any]) -> None:
    assert apply_overrides({"a": {"k": 1}, "l": [1, {"x": 1}]}, overrides) == expected


@pytest.mark.parametrize(
    ("base", "override", "expected"),
    [
        ({"optimizer": {"use": "a", "lr": 1}}, "optimizer=b", {"optimizer": {"use": "b"}}),
        ({"optimizer": {"use": "a", "lr": 1}}, "optimizer=a", {"optimizer": {"use": "a", "lr": 1}}),
        ({"optimizer": {"use": "a", "lr": 1}}, "optimizer.lr=2", {"optimizer": {"use": "a", "lr": 2}}),
        ({"optimizer": "a"}, "optimizer.lr=2", {"optimizer": {"use": "a", "lr": 2}}),
        ({"optimizer": {"use": "a", "lr": 1}}, "optimizer={use: b, m: 1}", {"optimizer": {"use": "b", "m": 1}}),
        ({"model": {"path": "x", "dtype": "y"}}, "model=z", {"model": {"path": "z", "dtype": "y"}}),
        ({"model": "x"}, "model.dtype=y", {"model": {"path": "x", "dtype": "y"}}),
        ({"model": "???"}, "model.dtype=y", {"model": {"dtype": "y"}}),
        ({"data": {"use": "u", "path": "???"}}, "data=p", {"data": {"use": "u", "path": "p"}}),
        ({"adapter": {"use": "u", "path": "p"}}, "adapter=v", {"adapter": {"use": "v"}}),
        ({"adapter": {"use": "u"}}, "adapter=null", {"adapter": None}),
        ({"batch": {"size": 4}}, "batch=all", {"batch": "all"}),
        ({"loggers": ["a", "b"]}, "loggers.1.every=5", {"loggers": ["a", {"use": "b", "every": 5}]}),
    ],
)
def test_sections(base: dict[str, Any], override: str, expected: dict[str, Any]) -> None:
    assert apply_overrides(base, [override]) == expected


def test_section_and_option_in_any_order() -> None:
    base = {"optimizer": {"use": "a", "lr": 1}}
    expected = {"optimizer": {"use": "b", "m": 2}}
    assert apply_overrides(base, ["optimizer=b", "optimizer.m=2"]) == expected
    assert apply_overrides(base, ["optimizer.m=2", "optimizer=b"]) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "'lr' is no override"),
        ("=1", "'' in '=1' is no key"),
        ("a..b=1", "is no key"),
        ("a b=1", "is no key"),
        (".a=1", "is no key"),
        ("a.=1", "is no key"),
        ("-a=1", "is no key"),
        ("~", "'' in '~' is no key"),
        ("~a=1", "'a=1' in '~a=1' is no key"),
        ("~optimzer", "there is no key 'optimzer' to delete (did you mean 'optimizer'?)"),
        ("~optimizer.rl", "there is no key 'rl' to delete"),
        ("~optimizer.lr.x", "there is no key 'x' to delete"),
        ("~loggers.7", "there is no key '7' to delete"),
        ("loggers.7=x", "loggers.7: the list loggers has 1 items (from 0)"),
        ("a=[1,2", "the override 'a=[1,2', line 1"),
        ("a={", "the override 'a={'"),
        (".".join("a" * (MAX_DEPTH + 1)) + "=1", "nested more than"),
        ("a=" + "9" * 5000, "the override"),
    ],
)
def test_overrides_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"optimizer": {"lr": 1}, "loggers": ["a"]}, [override])
    assert message in caught.value.message
    assert caught.value.fix
