"""Proposed tokens: asked of a speculator for the requests that wait for their next token, and laid out for checking."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard_engine.request import Request
from pegboard_engine.scheduler import Scheduler
from pegboard_engine.table import Table

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.speculator import Speculator
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry

log = logging.getLogger("pegboard.engine")


class Proposals:
    """A speculator at work on the running requests. One that raises is not asked again: without it the output is the same.

    proposed, accepted: how many ids so far.
    """

    def __init__(self, speculator: Speculator, table: Table) -> None:
        self.proposed = self.accepted = 0
        self._speculator = speculator
        self._table = table
        self._broken = False

    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        """Prepare the speculator for a model."""
        self._speculator.load(built, tokenizer, registry)

    def draft(self, scheduler: Scheduler) -> None:
        """Put proposals before the scheduler, for requests without a grammar that wait for one token."""
        table = self._table
        slots = table.running
        ready = (table.known[slots] - table.scheduled[slots] == 1) & (table.inflight[slots] == 0)
        slots = slots[ready & (table.known[slots] < table.limit[slots] - 1)]
        chosen = [slot for slot in slots.tolist() if table.request(slot).params.grammar is None]
        if not chosen or self._broken:
            return
        most = np.minimum(self._speculator.most, table.limit[chosen] - table.known[chosen] - 1).tolist()
        tokens: list[Any] = [table.tokens[slot, : int(table.known[slot])] for slot in chosen]
        for row in tokens:
            row.flags.writeable = False
        try:
            proposals = self._speculator.propose([table.request(slot).arrival for slot in chosen], tokens, most)
        except Exception as error:
            log.error("the speculator failed and is not asked again", exc_info=error)
            self._broken = True
            return
        for slot, ids in zip(chosen, proposals, strict=True):
            if len(ids):
                scheduler.draft(slot, ids)

    def count(self, drafts: np.ndarray, runs: list[list[int]]) -> None:
        """Note what became of a step's proposals."""
        self.proposed += int(drafts.sum())
        self.accepted += sum(len(run) - 1 for run in runs)

    def forget(self, request: Request) -> None:
        """Say that a request ended."""
        self._speculator.forget([request.arrival])

    def close(self) -> None:
        """Free what the speculator holds."""
        self._speculator.close()
