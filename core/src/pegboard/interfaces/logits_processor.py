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

    options: validated by the front door's schema (None where it has none). prompt_ids, output_ids: what the request holds so far.
    """

    options: Any
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


class LogitsProcessor(ABC):
    """One instance serves all requests of a worker; what differs by request comes with its row."""

    @abstractmethod
    def process(self, logits: Tensor, rows: Sequence[ProcessedRow]) -> Tensor:
        """Return the logits [R, V] float32 of `rows` [R], changed in place or anew. An exception fails the requests of these rows."""
