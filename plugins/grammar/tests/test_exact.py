"""What is allowed is what matches, judged by others: jsonschema, Python's re, and each choice spelled out."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.interfaces.grammar import CompiledGrammar, GrammarMatcher
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.types import GrammarSpec
from pegboard_grammar.backend import LlguidanceBackend
from pegboard_sdk.conformance.grammar import allowed, random_answer

few = settings(max_examples=25, deadline=None)
Make = Callable[..., LlguidanceBackend]

SCALARS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -5, "maximum": 117},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^[a-c]{1,3}x?$"},
    {"enum": ["one", 2, None, [3]]},
    {"const": {"a": "ä\n"}},
]
schemas = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(
            lambda parts, required: {
                "type": "object",
                "properties": parts,
                "required": sorted(parts)[:required],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "name", "größe", '"']), inner, max_size=3),
            st.integers(0, 3),
        ),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="session")
def backend(make: Make) -> LlguidanceBackend:
    return make(whitespace=2)


def width(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab_size + 13


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    return b"".join(tokenizer.token_bytes(i) or b"" for i in ids).decode()


def segmented(tokenizer: Tokenizer, text: bytes, draw: random.Random) -> list[int]:
    """Return ids that spell `text`, chosen at random among all ways."""
    ids: list[int] = []
    while text:
        fits = [i for i in range(tokenizer.vocab_size) if (b := tokenizer.token_bytes(i)) and text.startswith(b)]
        ids.append(draw.choice(fits))
        text = text[len(tokenizer.token_bytes(ids[-1]) or b"") :]
    return ids


@few
@given(schemas, st.integers())
def test_answers_in_a_schema_are_valid(
    backend: LlguidanceBackend, pieces: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    compiled = backend.compile(GrammarSpec("json_schema", json.dumps(schema)))
    for draw in (random.Random(seed), random.Random(seed + 1)):
        ids = random_answer(compiled.matcher(), pieces, width(pieces), draw)
        if ids is not None:
            jsonschema.validate(json.loads(text_of(pieces, ids)), schema)


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return valid values of one of the schemas above, objects with their keys in the order of the schema."""
    if "anyOf" in schema:
        return st.one_of(*map(values_of, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return st.lists(values_of(schema["items"]), max_size=schema["maxItems"])
    if schema["type"] == "object":
        parts = {key: values_of(part) for key, part in schema["properties"].items()}
        optional = [key for key in parts if key not in schema["required"]]
        chosen = st.sets(st.sampled_from(optional)) if optional else st.just(set())
        return chosen.flatmap(
            lambda more: st.fixed_dictionaries({k: v for k, v in parts.items() if k in schema["required"] or k in more})
        ).map(lambda found: {key: found[key] for key in parts if key in found})
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).map(str.strip)
    return {
        "integer": st.integers(-5, 117),
        "number": st.integers() | st.floats(allow_nan=False, allow_infinity=False, width=32).map(float),
        "boolean": st.booleans(),
        "null": st.none(),
        "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    }[schema["type"]]


@few
@given(st.data(), st.booleans(), st.booleans())
def test_every_valid_value_can_be_written(
    backend: LlguidanceBackend, pieces: Tokenizer, data: st.DataObject, ascii_only: bool, spaced: bool
) -> None:
    schema = data.draw(schemas)
    value = data.draw(values_of(schema))
    jsonschema.validate(value, schema)
    separators = (", ", ": ") if spaced else (",", ":")
    # Escapes of non-ASCII letters are no way of writing a const or a pattern here, though JSON has them.
    text = json.dumps(value, ensure_ascii=ascii_only and json.dumps(value).find("\\u") < 0, separators=separators)
    compiled = backend.compile(GrammarSpec("json_schema", json.dumps(schema)))
    assert_written(compiled, pieces, text, random.Random(data.draw(st.integers())))


def assert_written(compiled: CompiledGrammar, tokenizer: Tokenizer, text: str, draw: random.Random) -> None:
    matcher = compiled.matcher()
    for token_id in segmented(tokenizer, text.encode(), draw):
        assert token_id in allowed(matcher, width(tokenizer)), text
        assert matcher.accept(token_id)
    assert set(tokenizer.eos_ids) <= allowed(matcher, width(tokenizer)), text


REGEXES = (
    "a(b|c)*d?",
    r"\d{2,4}-\w+",
    "(?:yes|ye|s)+",
    "[^a-y]{1,3}",
    "é?大{1,2}x",
    r"\"[^\"\\]*\"",
    r"a/b\/c",
    "a\nb",
    "(?i)abc|x",
    "",
    "^ab$",
    r"[\d\s]\D\S\W",
    "a*?b+?",
    ".{2}",
)


@pytest.mark.parametrize("pattern", REGEXES)
@few
@given(st.data())
def test_a_regex_allows_what_matches(
    backend: LlguidanceBackend, pieces: Tokenizer, pattern: str, data: st.DataObject
) -> None:
    compiled = backend.compile(GrammarSpec("regex", pattern))
    # Classes are those of ASCII, or an answer may have digits that nobody's parser reads.
    known = re.compile(pattern.replace(r"\/", "/"), re.ASCII)
    draw = random.Random(data.draw(st.integers()))
    ids = random_answer(compiled.matcher(), pieces, width(pieces), draw, most=60)
    if ids is not None:
        assert known.fullmatch(text_of(pieces, ids)), text_of(pieces, ids)
    text = data.draw(st.from_regex(known, fullmatch=True))
    if known.fullmatch(text) and not text.endswith("\n") and "ſ" not in text and "K" not in text:
        assert_written(compiled, pieces, text, draw)


@few
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=8), st.integers())
def test_choices_are_the_only_answers(
    backend: LlguidanceBackend, pieces: Tokenizer, choices: list[str], seed: int
) -> None:
    compiled = backend.compile(GrammarSpec("choice", json.dumps(choices)))
    for number, choice in enumerate(choices):
        assert_written(compiled, pieces, choice, random.Random(seed + number))
        ids = random_answer(compiled.matcher(), pieces, width(pieces), random.Random(seed - number))
        assert ids is None or text_of(pieces, ids) in choices


@pytest.mark.parametrize(
    "grammar",
    [
        'start: expr\nexpr: expr "+" term | term\nterm: NUMBER | "(" expr ")"\nNUMBER: /[0-9]+/\n',
        'root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"\n',
        '# sums\nroot ::= term ("+" term)*  # of terms\nterm ::= num | "(" root ")"\nnum ::= [0-9] num?',
    ],
)
@few
@given(st.integers())
def test_grammars_of_both_dialects(backend: LlguidanceBackend, pieces: Tokenizer, grammar: str, seed: int) -> None:
    compiled, draw = backend.compile(GrammarSpec("ebnf", grammar)), random.Random(seed)
    ids = random_answer(compiled.matcher(), pieces, width(pieces), draw, most=60)
    if ids is not None:
        # Python reads no leading zeros.
        assert isinstance(eval(re.sub(r"\b0+(?=\d)", "", text_of(pieces, ids))), int)
    assert_written(compiled, pieces, "12+(3+(4))+005", draw)


def state(matcher: GrammarMatcher, tokenizer: Tokenizer) -> tuple[frozenset[int], bool]:
    return frozenset(allowed(matcher, width(tokenizer))), matcher.finished


@few
@given(st.sampled_from(["json", "regex", "choice"]), st.lists(st.integers(-3, 8), max_size=30), st.integers())
def test_any_sequence_of_steps_and_rollbacks(
    backend: LlguidanceBackend, pieces: Tokenizer, kind: str, steps: list[int], seed: int
) -> None:
    """Against a history of states: a negative step takes ids back, another takes an allowed one or a refused one."""
    spec = {
        "json": GrammarSpec("json_schema", '{"type": "object", "additionalProperties": {"type": "boolean"}}'),
        "regex": GrammarSpec("regex", "(abc|ab|大é|yes)*"),
        "choice": GrammarSpec("choice", '["abc", "abcabc", "", "大大"]'),
    }[kind]
    matcher, draw = backend.compile(spec).matcher(), random.Random(seed)
    history = [state(matcher, pieces)]
    for step in steps:
        if step < 0:
            count = min(-step, len(history) - 1)
            matcher.rollback(count)
            history = history[: len(history) - count]
        else:
            free = history[-1][0]
            chosen = draw.choice(sorted(free)) if step else draw.choice(sorted(set(range(width(pieces))) - free))
            assert matcher.accept(chosen) == bool(step)
            if step:
                history.append(state(matcher, pieces))
        assert state(matcher, pieces) == history[-1]
