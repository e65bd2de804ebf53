"""Logits processors that are broken, each in one way."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pegboard_acme.plugin import SPEC
from pegboard_acme.processor import AcmeProcessor
from torch import Tensor

from pegboard.interfaces.logits_processor import LogitsProcessor, ProcessedRow
from pegboard_sdk.conformance import LogitsProcessorSuite


class Mutant(LogitsProcessorSuite):
    __test__ = False
    spec = SPEC
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeProcessor]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> LogitsProcessor:
        return self.broken()

    def expected(self, logits: Tensor, row: ProcessedRow) -> Tensor:
        for token in row.output_ids[-row.options.window :]:
            logits[token] -= row.options.strength
        return logits


class TestSound(Mutant):
    broken = AcmeProcessor


class TestNarrow(Mutant):
    caught_by = ("test_shape",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            return super().process(logits, rows).bfloat16()


class TestReturnsOneRow(Mutant):
    caught_by = ("test_shape",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            return super().process(logits, rows)[:1]


class TestReturnsNothing(Mutant):
    caught_by = ("test_shape",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            super().process(logits, rows)


class TestOtherFormula(Mutant):
    caught_by = ("test_value",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            return super().process(super().process(logits, rows), rows)


class TestUsesTheFirstRowsOptions(Mutant):
    caught_by = ("test_rows_do_not_see_each_other",)
    more_options = ({"strength": 5.0},)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            options = rows[0].options
            return super().process(logits, [ProcessedRow(options, row.prompt_ids, row.output_ids) for row in rows])


class TestCentresOverRows(Mutant):
    caught_by = ("test_rows_do_not_see_each_other",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            return super().process(logits - logits.mean(), rows)


class TestCountsItsCalls(Mutant):
    caught_by = ("test_nothing_is_kept_between_calls",)

    class broken(AcmeProcessor):
        calls = 0

        def process(self, logits, rows):
            self.calls += 1
            return super().process(logits, rows) - (self.calls > 3)


class TestRemembersTheLongestOutput(Mutant):
    caught_by = ("test_nothing_is_kept_between_calls",)

    class broken(AcmeProcessor):
        longest: Any = ()

        def process(self, logits, rows):
            if len(rows) > 1:
                return super().process(logits, rows)
            self.longest = max(self.longest, rows[0].output_ids, key=len)
            return super().process(logits, [ProcessedRow(rows[0].options, rows[0].prompt_ids, self.longest)])


class TestConsumesTheOutput(Mutant):
    caught_by = ("test_rows_are_read_only",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            new = super().process(logits, rows)
            for row in rows:
                row.output_ids.clear()
            return new


class TestKnowsListsAlone(Mutant):
    caught_by = ("test_sequences_of_other_types",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            whole = [row.prompt_ids.copy() for row in rows]
            assert len(whole) == len(rows)
            return super().process(logits, rows)


class TestNormalises(Mutant):
    """The logarithm of a probability that is 0 is -inf, of one that is 0 / 0 no number."""

    caught_by = ("test_logits_stay_numbers",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            weights = super().process(logits, rows).exp()
            return (weights / weights.sum(1, keepdim=True)).log()


class TestForbidsAll(Mutant):
    caught_by = ("test_logits_stay_numbers",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            new = super().process(logits, rows)
            new[:, ::2] = -math.inf
            return new


class TestForces(Mutant):
    caught_by = ("test_logits_stay_numbers",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            new = super().process(logits, rows)
            new[:, 0] = math.inf
            return new


class TestAllowsAgain(Mutant):
    caught_by = ("test_what_is_forbidden_stays_forbidden",)

    class broken(AcmeProcessor):
        def process(self, logits, rows):
            return torch.nan_to_num(super().process(logits, rows), neginf=-1e9)
