"""Transforms that are broken, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pegboard_acme.options import Options
from pegboard_acme.plugin import SPEC
from pegboard_acme.transform import AcmeTransform

from pegboard_sdk.conformance import TransformSuite


class Mutant(TransformSuite):
    __test__ = False
    spec = SPEC
    rows = ({"ask": "two and two?", "answer": "four"}, {"ask": "é", "answer": ""})
    bad = ({}, {"ask": "two?"}, {"ask": 2, "answer": "four"})
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeTransform]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmeTransform:
        return self.broken(Options(**options))


class TestSound(Mutant):
    broken = AcmeTransform


class Changed(AcmeTransform):
    """Makes `change(row)` of the one sequence."""

    def __call__(self, row, tokenizer):
        (made,) = super().__call__(row, tokenizer)
        return [self.change(made)]


class TestMaskIsShifted(Mutant):
    caught_by = ("test_examples_are_whole",)

    class broken(Changed):
        def change(self, row):
            return replace(row, mask=row.mask[1:])


class TestIdsBeyondTheVocabulary(Mutant):
    caught_by = ("test_examples_are_whole",)

    class broken(Changed):
        def change(self, row):
            return replace(row, input_ids=[i + 1000 for i in row.input_ids])


class TestNumbersForSomeTokens(Mutant):
    caught_by = ("test_examples_are_whole",)

    class broken(Changed):
        def change(self, row):
            return replace(row, per_token={"weight": [1.0]})


class TestGivesNothing(Mutant):
    caught_by = ("test_examples_are_whole",)

    class broken(AcmeTransform):
        def __call__(self, row, tokenizer):
            return []


class TestLearnsNothing(Mutant):
    caught_by = ("test_something_is_learned",)

    class broken(Changed):
        def change(self, row):
            return replace(row, mask=[False] * len(row.mask))


class TestLearnsThePrompt(Mutant):
    caught_by = ("test_something_is_learned",)

    class broken(Changed):
        def change(self, row):
            return replace(row, part="prompt")


class TestCountsItsRows(Mutant):
    caught_by = ("test_same_every_time",)

    class broken(Changed):
        count = 0

        def change(self, row):
            self.count += 1
            return replace(row, extras={"number": self.count})


class TestChangesTheRow(Mutant):
    caught_by = ("test_same_every_time",)

    class broken(AcmeTransform):
        def __call__(self, row, tokenizer):
            made = super().__call__(row, tokenizer)
            row["seen"] = True
            return made


class TestInventsAPart(Mutant):
    caught_by = ("test_parts",)

    class broken(Changed):
        def change(self, row):
            return replace(row, part="other")


class TestAddsSomethingElseTheSecondTime(Mutant):
    caught_by = ("test_neighbours_complete_an_example",)

    class broken(AcmeTransform):
        times = 0

        def complete(self, example, neighbours):
            self.times += 1
            return [example] * (self.times % 2)


class TestAddsInPlace(Mutant):
    caught_by = ("test_neighbours_complete_an_example",)

    class broken(AcmeTransform):
        def complete(self, example, neighbours):
            example[0].input_ids.append(7)
            example[0].mask.append(True)
            return ()


class TestTakesAnything(Mutant):
    caught_by = ("test_bad_rows_are_explained",)

    class broken(AcmeTransform):
        def _text(self, row, name):
            return str(row.get(name))


class TestRaisesWhatPythonRaises(Mutant):
    caught_by = ("test_bad_rows_are_explained",)

    class broken(AcmeTransform):
        def _text(self, row, name):
            return row[name]
