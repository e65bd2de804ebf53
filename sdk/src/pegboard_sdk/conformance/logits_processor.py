"""The suite of kind `logits_processor`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pegboard.interfaces.logits_processor import LogitsProcessor, ProcessedRow
from pegboard.plugins.doors import import_object, load_schema
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite

TOLERANCE = 1e-5
_OUTPUTS: Sequence[Sequence[int]] = ((), (3,), (3, 3, 7), (1, 2, 3, 4, 5, 6, 7, 8, 9), (0, 11, 0, 11, 0))
_PROMPTS: Sequence[Sequence[int]] = ((1, 2), (), (5, 5, 3), (9,), (2, 4, 6, 8))


@standard
class LogitsProcessorSuite(PluginSuite):
    """Rows of random logits behind prompts and outputs of many lengths, none included.

    options, more_options: those of a request, and of others that differ, as requests give them.
    vocab_size: width of the logits.
    keeps_forbidden: whether an id that is forbidden already stays so.
    leaves_something: whether some id may always come where one might.
    """

    kind = "logits_processor"
    more_options: ClassVar[Sequence[Mapping[str, Any]]] = ()
    vocab_size: ClassVar[int] = 32
    keeps_forbidden: ClassVar[bool] = True
    leaves_something: ClassVar[bool] = True

    def expected(self, logits: Tensor, row: ProcessedRow) -> Tensor | None:
        """Return the logits [V] float64 of one row by an independent formula; None for none."""
        return None

    def create(self, **options: Any) -> LogitsProcessor:
        """Return an instance, which is constructed without arguments, as a worker does it."""
        made: LogitsProcessor = import_object(self.spec.target)()
        return made

    def options_of(self, options: Mapping[str, Any]) -> Any:
        """Return the options of a request as its row has them."""
        schema = load_schema(self.spec, "the plugin")
        return None if schema is None else schema.model_validate(dict(options))

    def rows(self) -> list[ProcessedRow]:
        """Return rows of several requests: every output with every choice of options."""
        made = []
        for options in (self.options, *self.more_options):
            for prompt, output in zip(_PROMPTS, _OUTPUTS, strict=True):
                ids = [[token % self.vocab_size for token in tokens] for tokens in (prompt, output)]
                made.append(ProcessedRow(self.options_of(options), *ids))
        return made

    def logits(self, count: int, scale: float = 3.0) -> Tensor:
        """Return random logits [count, V] float32."""
        return torch.randn(count, self.vocab_size, generator=torch.Generator().manual_seed(1)) * scale

    def test_shape(self) -> None:
        """What comes back is as many logits, in float32, for one row as for many."""
        for count in (1, len(self.rows())):
            given = self.logits(count)
            new = self.create().process(given, self.rows()[:count])
            assert isinstance(new, Tensor) and new.shape == (count, self.vocab_size)
            assert new.dtype == torch.float32

    def test_value(self) -> None:
        """Each row equals the independent formula of `expected`."""
        rows, logits = self.rows(), self.logits(len(self.rows()))
        wanted = [self.expected(one.double(), row) for one, row in zip(logits, rows, strict=True)]
        if any(one is None for one in wanted):
            self.skip("expected() gives no independent formula")
        new = self.create().process(logits.clone(), rows)
        for mine, right in zip(new, wanted, strict=True):
            assert right is not None
            torch.testing.assert_close(mine.double(), right.double(), rtol=TOLERANCE, atol=TOLERANCE)

    def test_rows_do_not_see_each_other(self) -> None:
        """A row alone, and among others in any order, comes to the same."""
        rows, logits, processor = self.rows(), self.logits(len(self.rows())), self.create()
        together = processor.process(logits.clone(), rows).clone()
        backwards = processor.process(logits.flip(0), rows[::-1]).flip(0)
        torch.testing.assert_close(backwards, together, rtol=0, atol=0)
        for i, row in enumerate(rows):
            alone = processor.process(logits[i : i + 1].clone(), [row])
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=0)

    def test_nothing_is_kept_between_calls(self) -> None:
        """An output may grow, shrink after a rejected proposal, and come again; another instance gives the same."""
        processor, options = self.create(), self.options_of(self.options)
        logits = self.logits(1)
        for length in (1, 2, 5, 3, 0, 5):
            row = ProcessedRow(options, [1, 2], [token % self.vocab_size for token in (3, 3, 7, 1, 3)[:length]])
            mine = processor.process(logits.clone(), [row])
            torch.testing.assert_close(mine, self.create().process(logits.clone(), [row]), rtol=0, atol=0)

    def test_rows_are_read_only(self) -> None:
        """Options and ids are as they were."""
        rows = self.rows()
        before = copy.deepcopy(rows)
        self.create().process(self.logits(len(rows)), rows)
        assert rows == before

    def test_sequences_of_other_types(self) -> None:
        """Ids may come as tuples as well as lists."""
        rows, logits = self.rows(), self.logits(len(self.rows()))
        others = [ProcessedRow(row.options, tuple(row.prompt_ids), tuple(row.output_ids)) for row in rows]
        new = self.create().process(logits.clone(), others)
        torch.testing.assert_close(new, self.create().process(logits.clone(), rows), rtol=0, atol=0)

    def test_logits_stay_numbers(self) -> None:
        """No NaN and no +inf comes of numbers, however large, nor of -inf, and some id may still come."""
        rows = self.rows()
        for scale in (0.0, 3.0, 1e4):
            logits = self.logits(len(rows), scale)
            logits[:, 1::2] = -math.inf
            new = self.create().process(logits, rows)
            assert not new.isnan().any() and not new.isposinf().any()
            assert not self.leaves_something or new.amax(1).isfinite().all(), "a row allows nothing any more"

    def test_what_is_forbidden_stays_forbidden(self) -> None:
        """An id at -inf, which a processor before may have put there, comes back so."""
        self.needs("keeps_forbidden")
        rows, logits = self.rows(), self.logits(len(self.rows()))
        logits[:, ::3] = -math.inf
        assert self.create().process(logits, rows)[:, ::3].isneginf().all()
