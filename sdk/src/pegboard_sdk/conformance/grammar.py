"""The suite of kind `grammar`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarMatcher
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.types import GrammarSpec
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "sizes": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
_HOSTILE = {
    "json_schema": ('{"items":' * 50_000 + "{}" + "}" * 50_000, '{"$ref": "#"}', '{"allOf": [{"$ref": "#"}]}'),
    "regex": ("(" * 50_000 + "a" + ")" * 50_000, "((((a{99}){99}){99}){99}){99}", "(a|b)*a(a|b){60}"),
    "choice": (json.dumps([f"word{i}" for i in range(100_000)]), "[" * 50_000),
    "ebnf": ("root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000, 'root ::= root root | "a" root'),
}


@dataclass(frozen=True, slots=True)
class _Sample:
    """A grammar, texts that match it, and texts that do not, of which some are the beginning of one that does."""

    spec: GrammarSpec
    matches: Sequence[str]
    others: Sequence[str]
    oracle: Callable[[str], bool]


def _is_json_of_schema(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and sorted(value) == ["name", "sizes"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 5
        and isinstance(value["sizes"], list)
        and all(type(size) is int for size in value["sizes"])
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


_CHOICES = ("yes", "yesterday", "no", "größe 大")
_SAMPLES = (
    _Sample(
        GrammarSpec("json_schema", json.dumps(_SCHEMA)),
        ('{"name": "ab", "sizes": [1, -20]}', '{"name": "", "sizes": []}', '{"name": "大é", "sizes": [0]}'),
        ('{"name": "ab", "sizes": [1, -20]', '{"name": 1, "sizes": []}', '{"name": "toolong"', "[]", ""),
        _is_json_of_schema,
    ),
    _Sample(
        GrammarSpec("json_object"), ("{}", '{"a": {"b": [1, "}", null]}}'), ("[]", '{"a"', '{"a": }', ""), _is_object
    ),
    _Sample(
        GrammarSpec("regex", r"a(b|c)*d?[x-z]{2}"),
        ("axx", "abcbcdyz", "adzz"),
        ("a", "ax", "axxx", "bxx", "addxx", ""),
        lambda text: re.fullmatch(r"a(b|c)*d?[x-z]{2}", text) is not None,
    ),
    _Sample(
        GrammarSpec("choice", json.dumps(_CHOICES)),
        _CHOICES,
        ("ye", "yess", "noo", "gr", "maybe", ""),
        _CHOICES.__contains__,
    ),
    _Sample(
        GrammarSpec("ebnf", 'root ::= "[" item ("," item)* "]"\nitem ::= [0-9] | root\n'),
        ("[1]", "[1,[2,3]]", "[[[7]]]"),
        ("[", "[1,]", "[1,2", "1", ""),
        lambda text: re.fullmatch(r"[][0-9,]+", text) is not None and _is_nested(json.loads(text)),
    ),
)


def _is_nested(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, list) and bool(value) and all(map(_is_nested, value)))


@standard
class GrammarSuite(PluginSuite):
    """Grammars over the ids of bytes (the toy tokenizer), which allow what matches and nothing else.

    kinds: those kinds of `GrammarSpec` that the backend compiles.
    extra_ids: ids of the logits beyond the tokenizer's, as padded heads have them.
    walks: random answers that are tried for each kind.
    """

    kind = "grammar"
    kinds: ClassVar[Sequence[str]] = ("json_schema", "json_object", "regex", "choice", "ebnf")
    extra_ids: ClassVar[int] = 40
    walks: ClassVar[int] = 20

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, whose ids must include one for each byte of UTF-8."""
        from pegboard_sdk.toys.tokenizer import TinyTokenizer

        return TinyTokenizer()

    def backend(self) -> tuple[GrammarBackend, Tokenizer, int]:
        """Return a loaded backend, its tokenizer and the width of the logits."""
        backend: GrammarBackend = self.create()
        tokenizer = self.tokenizer()
        width = tokenizer.vocab_size + self.extra_ids
        backend.load(tokenizer, width)
        return backend, tokenizer, width

    def samples(self) -> Iterator[tuple[_Sample, CompiledGrammar, Tokenizer, int]]:
        """Yield the standard grammars of `kinds`, compiled."""
        backend, tokenizer, width = self.backend()
        for sample in _SAMPLES:
            if sample.spec.kind in self.kinds:
                yield sample, backend.compile(sample.spec), tokenizer, width

    def test_matching_texts_are_allowed(self) -> None:
        """Each id of a matching text is allowed where it stands, and an end after the last."""
        for sample, compiled, tokenizer, width in self.samples():
            for text in sample.matches:
                matcher = compiled.matcher()
                for token_id in tokenizer.encode(text, special=False):
                    assert token_id in allowed(matcher, width), f"{text!r} is not allowed by {sample.spec}"
                    assert matcher.accept(token_id)
                assert set(tokenizer.eos_ids) <= allowed(matcher, width), f"{text!r} may not end in {sample.spec}"

    def test_other_texts_are_not(self) -> None:
        """A text that does not match cannot be written and ended."""
        for sample, compiled, tokenizer, width in self.samples():
            for text in sample.others:
                matcher = compiled.matcher()
                whole = all(map(matcher.accept, tokenizer.encode(text, special=False)))
                ends = whole and set(tokenizer.eos_ids) & allowed(matcher, width)
                assert not ends, f"{text!r} is allowed by {sample.spec}"

    def test_random_answers_match(self) -> None:
        """Whatever is drawn under the mask matches once it has ended."""
        ended = 0
        for sample, compiled, tokenizer, width in self.samples():
            for seed in range(self.walks):
                ids = random_answer(compiled.matcher(), tokenizer, width, random.Random(seed))
                if ids is not None:
                    ended += 1
                    text = tokenizer.decode(ids)
                    assert sample.oracle(text), f"{text!r} was allowed by {sample.spec}"
        assert ended > 0

    def test_mask_and_accept_agree(self) -> None:
        """`accept` takes exactly the ids that `fill` allows, here at every place of a text."""
        for sample, compiled, tokenizer, width in self.samples():
            matcher = compiled.matcher()
            for token_id in tokenizer.encode(sample.matches[0], special=False):
                free = allowed(matcher, width)
                for other in range(width):
                    taken = matcher.accept(other)
                    assert taken == (other in free), f"id {other} in {sample.spec}"
                    if taken:
                        matcher.rollback(1)
                assert matcher.accept(token_id)

    def test_refused_id_changes_nothing(self) -> None:
        """After a refused id, also one that does not exist, everything is as before."""
        for sample, compiled, tokenizer, width in self.samples():
            matcher = compiled.matcher()
            for token_id in tokenizer.encode(sample.matches[0], special=False):
                free = allowed(matcher, width)
                refused = next(i for i in range(width) if i not in free)
                assert not any(map(matcher.accept, (refused, width, width + 5000, -1)))
                assert allowed(matcher, width) == free
                assert matcher.accept(token_id)

    def test_mask_is_written_whole(self) -> None:
        """What stood in the row does not matter, and bits beyond the logits are not set."""
        for _, compiled, _, width in self.samples():
            matcher = compiled.matcher()
            rows = np.stack([np.full((width + 31) // 32, word, np.int32) for word in (0, -1)])
            for row in rows:
                matcher.fill(row)
            assert (rows[0] == rows[1]).all()
            assert bits(rows[0]) <= set(range(width))

    def test_padding_and_markers_are_never_allowed(self) -> None:
        """Neither ids that the tokenizer lacks, nor special tokens that end nothing."""
        for sample, compiled, tokenizer, width in self.samples():
            texts = {i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) is not None}
            matcher = compiled.matcher()
            for token_id in [*tokenizer.encode(sample.matches[0], special=False), None]:
                assert allowed(matcher, width) <= texts | set(tokenizer.eos_ids)
                assert token_id is None or matcher.accept(token_id)

    def test_finished(self) -> None:
        """A grammar is finished when nothing but an end can follow, and then nothing else is allowed."""
        for sample, compiled, tokenizer, width in self.samples():
            for text in sample.matches:
                matcher = compiled.matcher()
                assert not matcher.finished
                for token_id in tokenizer.encode(text, special=False):
                    assert not matcher.finished, f"{sample.spec} is finished before the end of {text!r}"
                    assert matcher.accept(token_id)
                free = allowed(matcher, width)
                assert matcher.finished == (free <= set(tokenizer.eos_ids)), f"after {text!r} in {sample.spec}"
                assert matcher.accept(tokenizer.eos_ids[0])
                assert allowed(matcher, width) <= set(tokenizer.eos_ids)

    def test_rollback(self) -> None:
        """Taking ids back, an end too, leads to where the matcher was, from where all goes on as it did."""
        for sample, compiled, tokenizer, width in self.samples():
            ids = [*tokenizer.encode(sample.matches[0], special=False), tokenizer.eos_ids[0]]
            for count in range(len(ids) + 1):
                matcher, other = compiled.matcher(), compiled.matcher()
                assert all(map(matcher.accept, ids))
                matcher.rollback(count)
                assert all(map(other.accept, ids[: len(ids) - count]))
                assert matcher.finished == other.finished
                assert allowed(matcher, width) == allowed(other, width), f"{count} back in {sample.spec}"
                assert all(map(matcher.accept, ids[len(ids) - count :]))

    def test_matchers_are_apart(self) -> None:
        """Two answers in one grammar do not know of each other."""
        for sample, compiled, tokenizer, width in self.samples():
            one, two = compiled.matcher(), compiled.matcher()
            free = allowed(two, width)
            assert all(map(one.accept, tokenizer.encode(sample.matches[0], special=False)))
            assert allowed(two, width) == free == allowed(compiled.matcher(), width)

    def test_compiles_from_several_threads(self) -> None:
        """The same grammars, and others, at once."""
        backend, tokenizer, width = self.backend()
        samples = [sample for sample in _SAMPLES if sample.spec.kind in self.kinds] * 4
        with ThreadPoolExecutor(4) as pool:
            compiled = list(pool.map(backend.compile, [sample.spec for sample in samples]))
        for sample, grammar in zip(samples, compiled, strict=True):
            matcher = grammar.matcher()
            assert all(map(matcher.accept, tokenizer.encode(sample.matches[0], special=False)))
            assert set(tokenizer.eos_ids) <= allowed(matcher, width)

    def test_wrong_grammars_are_refused(self) -> None:
        """With a DataError of a few words."""
        backend, _, _ = self.backend()
        wrong = {
            "json_schema": ("", "{", "[1]", '{"type": "strange"}', '{"$ref": "#/nowhere"}', "\ud800"),
            "regex": ("(a", "[", "a{2,1}"),
            "choice": ("", "[]", '{"a": 1}', "[1]", '"yes"'),
            "ebnf": ("", "root ::= (", "root ::= nothing", "?!"),
        }
        for kind, values in wrong.items():
            if kind not in self.kinds:
                continue
            for value in values:
                with pytest.raises(DataError) as caught:
                    backend.compile(GrammarSpec(kind, value))  # type: ignore[arg-type]
                assert 10 < len(str(caught.value)) < 1000, str(caught.value)

    def test_hostile_grammars_do_no_harm(self) -> None:
        """They are refused, or compiled and then walked; nothing runs on, overflows or breaks."""
        backend, tokenizer, width = self.backend()
        for kind in self.kinds:
            for value in _HOSTILE.get(kind, ()):
                try:
                    compiled = backend.compile(GrammarSpec(kind, value))  # type: ignore[arg-type]
                    random_answer(compiled.matcher(), tokenizer, width, random.Random(0), most=50)
                except DataError as error:
                    assert len(str(error)) < 1000


def bits(row: np.ndarray[Any, Any]) -> set[int]:
    """Return the ids whose bits are set."""
    return set(np.unpackbits(row.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def allowed(matcher: GrammarMatcher, width: int) -> set[int]:
    """Return the ids that may come next."""
    row = np.zeros((width + 31) // 32, np.int32)
    matcher.fill(row)
    return bits(row)


def random_answer(
    matcher: GrammarMatcher, tokenizer: Tokenizer, width: int, draw: random.Random, most: int = 400
) -> list[int] | None:
    """Return ids drawn under the mask until an end, which is not among them; None when `most` were not enough."""
    ids: list[int] = []
    while len(ids) < most:
        free = sorted(allowed(matcher, width))
        ends = [token_id for token_id in free if token_id in tokenizer.eos_ids]
        # An end, or a byte that closes something, is preferred, or most answers would not come to one.
        closing = [token_id for token_id in free if tokenizer.token_bytes(token_id) in (b'"', b"}", b"]")]
        chosen = draw.choice(ends or closing or free) if free and draw.random() < 0.5 else draw.choice(free or [-1])
        if chosen == -1:
            return None
        assert matcher.accept(chosen), f"id {chosen} is allowed and not accepted"
        if chosen in tokenizer.eos_ids:
            return ids
        ids.append(chosen)
    return None
