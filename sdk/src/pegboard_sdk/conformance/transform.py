"""The suite of kind `transform`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import pytest

from pegboard.errors import DataError
from pegboard.types import Example, Row
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite
from pegboard_sdk.toys.tokenizer import TinyTokenizer


@standard
class TransformSuite(PluginSuite):
    """Rows are made into examples with a tokenizer of bytes.

    rows: good ones. bad: such as cannot be used. parts: what the sequences of an example may be, in their order.
    """

    kind = "transform"
    rows: ClassVar[Sequence[Mapping[str, Any]]]
    bad: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    parts: ClassVar[Sequence[tuple[str, ...]]] = (("",),)

    def examples(self, transform: Any, row: Mapping[str, Any]) -> list[Example]:
        """Return the examples of a row, each as a tuple of sequences."""
        made = transform(row, TinyTokenizer())
        return [(example,) if isinstance(example, Row) else tuple(example) for example in made]

    def whole(self, row: Row) -> None:
        """Check that a sequence has an id, a mask and numbers for each token."""
        assert row.input_ids, "an empty sequence"
        assert all(type(i) is int and 0 <= i < TinyTokenizer.vocab_size for i in row.input_ids)
        assert [type(learned) for learned in row.mask] == [bool] * len(row.input_ids)
        assert all(len(values) == len(row.input_ids) for values in row.per_token.values())

    def test_examples_are_whole(self) -> None:
        """Every token has an id of the vocabulary and a place in the mask."""
        transform = self.create()
        for row in self.rows:
            found = self.examples(transform, row)
            assert found, "a good row gives an example"
            for sequence in (sequence for example in found for sequence in example):
                self.whole(sequence)

    def test_something_is_learned(self) -> None:
        """But of a prompt, which is to be answered, something beyond the first token is to be predicted."""
        transform = self.create()
        for sequence in (s for row in self.rows for example in self.examples(transform, row) for s in example):
            assert any(sequence.mask[1:]) != (sequence.part == "prompt")

    def test_same_every_time(self) -> None:
        """Another instance makes the same of the same row, in any order of rows, and changes none of them."""
        rows = deepcopy(list(self.rows))
        transform = self.create()
        made = [self.examples(transform, row) for row in rows]
        assert rows == list(self.rows)
        again = self.create()
        assert [self.examples(again, row) for row in reversed(rows)] == made[::-1]
        assert [self.examples(transform, row) for row in rows] == made

    def test_parts(self) -> None:
        """Examples have the parts that they are said to have."""
        transform = self.create()
        found = {tuple(s.part for s in example) for row in self.rows for example in self.examples(transform, row)}
        assert found <= set(self.parts)

    def test_neighbours_complete_an_example(self) -> None:
        """`complete` makes the same of an example and its neighbours every time, and changes none of them."""
        transform = self.create()
        examples = [example for row in self.rows for example in self.examples(transform, row)]
        kept = deepcopy(examples)
        for number, example in enumerate(examples):
            neighbours = [*reversed(examples[:number]), *examples[number + 1 :]]
            added = list(transform.complete(example, iter(neighbours)))
            assert added == list(transform.complete(example, neighbours))
            for sequence in (sequence for one in added for sequence in one):
                self.whole(sequence)
        assert examples == kept

    def test_bad_rows_are_explained(self) -> None:
        """What is wrong with a row is a DataError that says what to do."""
        transform = self.create()
        for row in self.bad:
            with pytest.raises(DataError) as caught:
                transform(row, TinyTokenizer())
            assert caught.value.message.strip() and caught.value.fix
