"""Compiling: the cache, threads, waits, and what is said about what is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pegboard.errors import ConfigError, DataError
from pegboard.types import GrammarSpec
from pegboard_grammar.backend import Compiled, LlguidanceBackend
from pegboard_grammar.options import Options
from pegboard_sdk.conformance.grammar import allowed
from pegboard_sdk.toys.tokenizer import EOS, TURN, TinyTokenizer

Make = Callable[..., LlguidanceBackend]
ABC = GrammarSpec("choice", '["abc", "xyz"]')
SLOW = GrammarSpec("ebnf", "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(30)) + 'R30: "z"')


def schema(**keys: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(keys))


def test_the_same_grammar_is_compiled_once(make: Make) -> None:
    backend = make(cached=2)
    one = backend.compile(ABC)
    assert backend.compile(ABC) is one
    assert backend.compile(GrammarSpec("regex", ABC.value)) is not one
    assert backend.compile(ABC) is one, "what was used last stays"
    backend.compile(GrammarSpec("regex", "a"))
    backend.compile(GrammarSpec("regex", "b"))
    assert backend.compile(ABC) is not one


def test_threads_that_ask_at_once_get_one_grammar(make: Make) -> None:
    backend = make(threads=1)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(backend.compile, [ABC] * 6))
    assert len(set(map(id, found))) == 1


def test_a_long_compilation_is_not_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make(seconds=0.01, threads=1)
    build, go = backend._build, threading.Event()

    def held(*args: Any) -> Compiled:
        go.wait()
        return build(*args)

    monkeypatch.setattr(backend, "_build", held)
    with pytest.raises(DataError, match=r"not compiled within 0\.01 seconds"):
        backend.compile(SLOW)
    with pytest.raises(DataError, match="not compiled within"):
        backend.compile(ABC)  # the only thread is still busy
    go.set()
    for thread in threading.enumerate():
        if thread.name == "pegboard-grammar":
            thread.join()
    monkeypatch.setattr(backend, "_options", Options(threads=1, seconds=600))
    backend.compile(ABC)


def test_a_failed_compilation_frees_its_thread(make: Make) -> None:
    backend = make(threads=1)
    for _ in range(3):
        with pytest.raises(DataError):
            backend.compile(GrammarSpec("regex", "(a"))
    backend.compile(ABC)


def test_stacks_of_other_threads_stay_as_they_are(make: Make) -> None:
    before = threading.stack_size()
    make().compile(ABC)
    assert threading.stack_size() == before


def test_a_tokenizer_without_an_end_is_refused() -> None:
    class Endless(TinyTokenizer):
        eos_ids = ()

    with pytest.raises(ConfigError, match="no id that ends a text"):
        LlguidanceBackend(Options()).load(Endless(), 260)


def test_compiling_comes_after_loading() -> None:
    with pytest.raises(RuntimeError, match="before load"):
        LlguidanceBackend(Options()).compile(ABC)


def test_logits_may_be_narrower_than_the_tokenizer() -> None:
    backend = LlguidanceBackend(Options())
    backend.load(TinyTokenizer(), 258)
    assert allowed(backend.compile(GrammarSpec("regex", "a?")).matcher(), 258) == {ord("a"), EOS}


def test_several_ids_may_end_a_text() -> None:
    class Two(TinyTokenizer):
        eos_ids = (EOS, TURN)

    backend = LlguidanceBackend(Options())
    backend.load(Two(), 260)
    matcher = backend.compile(GrammarSpec("regex", "a?")).matcher()
    assert allowed(matcher, 260) == {ord("a"), EOS, TURN}
    assert matcher.accept(TURN) and matcher.finished and not matcher.accept(ord("a"))
    matcher.rollback(1)
    assert matcher.accept(ord("a")) and matcher.accept(EOS)


def test_a_grammar_may_ask_for_special_tokens(make: Make, pieces: TinyTokenizer) -> None:
    matcher = make().compile(GrammarSpec("ebnf", 'start: "a" <turn> "b"')).matcher()
    assert matcher.accept(ord("a"))
    assert allowed(matcher, pieces.vocab_size + 13) == {TURN}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (schema(type="object", uniqueItems=True, **{"not": {}}), 'these keywords cannot be enforced: ["not"'),
        (schema(type="strin"), "Invalid type: strin"),
        (schema(**{"$ref": "#/nope"}), "Pointer '/nope' does not exist"),
        (schema(**{"$ref": "http://example.com/a.json"}), "does not fetch"),
        (schema(**{"$ref": "#"}), "matched by no text"),
        (schema(type="string", minLength=5, maxLength=3), "minLength (5) is greater than maxLength (3)"),
        (schema(type="string", pattern="(?=a)"), "look-around"),
        (GrammarSpec("json_schema", "{,}"), "is not JSON"),
        (GrammarSpec("json_schema", "false"), "false, which nothing matches"),
        (GrammarSpec("json_schema", "3"), "the JSON schema is a int"),
        (GrammarSpec("regex", "(a"), "unclosed group"),
        (GrammarSpec("regex", r"(a)\1"), "backreferences are not supported"),
        (GrammarSpec("regex", r"\bfoo"), "lookarounds not supported"),
        (GrammarSpec("choice", '["a", 1]'), "no list of one or more texts"),
        (GrammarSpec("ebnf", "start: a\nb: foo"), "line 1, column 8: unknown name"),
        (GrammarSpec("ebnf", 'root ::= ("a"'), "is not GBNF: Expected"),
        (GrammarSpec("ebnf", "start: %json {"), "no schema after %json in line 1"),
        (GrammarSpec("ebnf", 'start: %json {"$ref": "#"}'), "matched by no text"),
        (GrammarSpec("lark", "start: x"), "no grammars of kind 'lark'"),  # type: ignore[arg-type]
    ],
)
def test_errors_are_for_the_author(make: Make, spec: GrammarSpec, words: str) -> None:
    with pytest.raises(DataError) as caught:
        make().compile(spec)
    said = str(caught.value)
    assert words in said and "fix:" in said and len(said) < 500
    assert "non-verbose" not in said and " | " not in said


@pytest.mark.parametrize(
    ("options", "spec", "words"),
    [
        ({"max_bytes": 10}, GrammarSpec("regex", "é" * 6), "12 bytes; at most 10"),
        ({"max_depth": 3}, schema(a=[[1]], b=[[[1]]]), "4 levels of nesting; at most 3"),
        ({"max_objects": 2}, schema(properties={"a": {}, "b": {}}), "4 objects; at most 2"),
        ({"max_properties": 2}, schema(properties={c: {} for c in "abc"}), "3 properties in one object; at most 2"),
        ({"max_properties": 2}, schema(required=list("abc")), "3 required in one object; at most 2"),
        (
            {"max_choices": 2},
            schema(properties={"a": {"enum": [1, 2]}, "b": {"enum": [3]}}),
            "3 enum values; at most 2",
        ),
        ({"max_choices": 2}, GrammarSpec("choice", '["a", "b", "c"]'), "3 choices; at most 2"),
        ({"max_pattern": 5}, GrammarSpec("regex", "a" * 6), "6 characters; at most 5"),
        ({"max_pattern": 5}, schema(type="string", pattern="a" * 6), "6 characters; at most 5"),
        ({"max_rules": 1}, GrammarSpec("ebnf", 'start: a\na: "x"'), "2 rules; at most 1"),
        ({}, GrammarSpec("ebnf", "start: X\nX: " + " & ".join(["/a/"] * 10)), "9 operators & and ~; at most 8"),
        ({}, schema(allOf=[{"type": "string", "pattern": f"a{i}"} for i in range(9)]), "9 patterns; at most 8"),
        ({"grammar_size": 10}, schema(type="object"), "too complex"),
        ({"lexer_fuel": 10}, GrammarSpec("choice", json.dumps(list(map(str, range(500))))), "too complex"),
    ],
)
def test_limits_are_told(make: Make, options: dict[str, int], spec: GrammarSpec, words: str) -> None:
    with pytest.raises(DataError) as caught:
        make(**options).compile(spec)
    assert words in str(caught.value)


def test_many_patterns_that_never_meet_are_no_matter(make: Make) -> None:
    fields = {f"f{i}": {"type": "string", "pattern": f"^a{i}[0-9]$"} for i in range(60)}
    make().compile(
        schema(type="object", properties={**fields, "x": {"anyOf": [fields["f1"], {"type": "null"}], "title": "X"}})
    )


def test_ampersands_in_texts_are_no_operators(make: Make) -> None:
    text = "&amp;~" * 20
    make().compile(GrammarSpec("ebnf", f'start: "{text}" X // {text}\nX: /[&~]{{3}}{text}"/ # "{text}\n'))


def test_unenforceable_keywords_may_be_ignored(make: Make) -> None:
    spec = schema(type="array", items={"type": "integer"}, uniqueItems=True)
    with pytest.raises(DataError, match="uniqueItems"):
        make().compile(spec)
    assert all(map(make(lenient=True).compile(spec).matcher().accept, b"[1,1]"))


@pytest.mark.parametrize("whitespace", [0, 1, 5])
def test_whitespace_ends(make: Make, whitespace: int) -> None:
    matcher = make(whitespace=whitespace).compile(GrammarSpec("json_object")).matcher()
    assert matcher.accept(ord("{"))
    assert [matcher.accept(ord(" ")) for _ in range(8)] == [i < whitespace for i in range(8)]
    assert matcher.accept(ord("}"))


def test_a_step_that_exceeds_its_limits_fails_its_answer_alone(make: Make, pieces: TinyTokenizer) -> None:
    compiled = make().compile(GrammarSpec("ebnf", 'start: (("a"|b){1,1000}){1,1000}\nb: ("c" "d"){0,100000}'))
    matcher, width = compiled.matcher(), pieces.vocab_size + 13
    with pytest.raises(DataError, match="too complex"):
        for _ in range(40):
            allowed(matcher, width)
            matcher.accept(ord("a"))
    assert not matcher.finished
    with pytest.raises(DataError):
        allowed(matcher, width)
    assert allowed(compiled.matcher(), width)


def test_a_mask_of_another_shape_is_a_defect(make: Make, pieces: TinyTokenizer) -> None:
    matcher = make().compile(ABC).matcher()
    words = (pieces.vocab_size + 13 + 31) // 32
    for wrong in (np.zeros(words + 1, np.int32), np.zeros(words, np.float32), np.zeros(2 * words, np.int32)[::2]):
        with pytest.raises(ValueError, match="contiguous row"):
            matcher.fill(wrong)


def test_more_than_was_accepted_cannot_be_taken_back(make: Make) -> None:
    matcher = make().compile(ABC).matcher()
    assert matcher.accept(ord("a"))
    for count in (-1, 2):
        with pytest.raises(ValueError, match="taken back"):
            matcher.rollback(count)
