"""Kind `logits_processor`: a change to the logits before a token is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ProcessedRow:
    """One request that asked for the processor.

    options: those of the request, validated by the front door's schema; None where it has none. prompt_ids, output_ids: what the
    request holds so far.
    """

    options: Any
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


class LogitsProcessor(ABC):
    """One instance, constructed without arguments, serves all requests of a worker; what differs by request comes with its row.

    It keeps nothing of a request: rows come in any company and order, and a row may come again with a shorter output, after a
    preemption or a rejected proposal. So what becomes of a row depends on its logits, options and ids alone.
    """

    @abstractmethod
    def process(self, logits: Tensor, rows: Sequence[ProcessedRow]) -> Tensor:
        """Return the logits [R, V] of `rows` [R], changed in place or anew; -inf forbids an id.

        logits: float32, as the model gave them or as the processor before left them. Options and ids are read only. When it raises it
        is called again for each row alone, and the requests for which it raises then fail.
        """
