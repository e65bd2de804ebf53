"""From logits to token ids, for all rows at once.

What a step asks is applied in this order: logits processors, masks (grammars, allowed ids), bias, ids that may not come (bad words,
ends before min_tokens), penalties; greedy rows take the greatest; the others are divided by their temperature, cut (min_p, top_k, top_p,
typical_p) and drawn from. Log-probabilities are those of the logits as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pegboard.ops import KernelTable, kernel_table
from pegboard_engine.sampling import ops  # noqa: F401  # registers the ops
from pegboard_engine.sampling.batch import PENALTIES, PROCESSORS, WORDS, SamplingBatch
from pegboard_engine.sampling.logprobs import Logprobs, gather_logprobs
from pegboard_engine.sampling.processors import Factory, Processors, factory_of
from pegboard_engine.sampling.state import Counts, Tails

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

_EDITS = ("processor_rows", "mask_rows", "edit_rows", "word_rows", "penalty_rows")
"""What of a batch changes logits, which are float32 for that."""


@dataclass(slots=True)
class Sampled:
    """What a step's rows came to.

    ids: [M] int64 on the device. most: [M] there, each row's greatest logit; no finite number where no token could be chosen, for which
    `errors` may have a reason. logprobs: of the rows that asked. errors: row -> a line for people.
    """

    ids: Tensor
    most: Tensor
    logprobs: Logprobs | None = None
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """Which rows have a token, [M] bool."""
        return self.most.isfinite()


@dataclass(slots=True)
class Verified(Sampled):
    """What proposals came to. accepted: [N] int64 on the device, how many of each proposal's ids stand.

    Sequence n has the tokens ids[start : start + accepted[n] + 1], where start is its first row: what stands, and one more.
    """

    accepted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


@dataclass(slots=True)
class _Proposals:
    """Where rows stand in sequences. ids: [N, P] int64, -1 past the end. sequence, offset: [R]. starts: [N]. All but ids on the host."""

    ids: np.ndarray
    sequence: np.ndarray
    offset: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, proposed: Sequence[Sequence[int] | np.ndarray]) -> _Proposals:
        lengths = np.array([len(one) for one in proposed], np.int64)
        ids = np.full((len(lengths), int(lengths.max(initial=0))), -1, np.int64)
        for row, one in zip(ids, proposed, strict=True):
            row[: len(one)] = one
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]]).astype(np.int64)[: len(lengths)]
        sequence = np.repeat(np.arange(len(lengths)), lengths + 1)
        return cls(ids, sequence, np.arange(len(sequence)) - starts[sequence], starts)

    def ahead(self, rows: np.ndarray) -> np.ndarray:
        """Return [len(rows), P] int64, the proposed ids before each row, -1 for none."""
        places = np.arange(self.ids.shape[1])
        return np.where(places < self.offset[rows, None], self.ids[self.sequence[rows]], -1)


class Sampler:
    """Samples for the slots of one running set. Batches must come in the order in which `SamplingColumns` made them.

    processors: the registry that logits processors come from, or a function that makes one by name. kernels: the ops `sample` and
    `penalise_`; torch's without.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str,
        processors: Registry | Factory | None = None,
        kernels: KernelTable | None = None,
    ) -> None:
        self._kernels = kernel_table() if kernels is None else kernels
        self._vocab = vocab_size
        self._device = torch.device(device)
        # What each octet of a mask adds to eight logits.
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._octets = torch.from_numpy(np.where(bits, 0, -np.inf).astype(np.float32)).to(self._device)
        self._counts = Counts(vocab_size, self._device)
        self._tails = Tails(self._device)
        made = processors if processors is None or callable(processors) else factory_of(processors)
        self._processors = Processors(made)

    def sample(self, logits: Tensor, batch: SamplingBatch | None) -> Sampled:
        """Choose a token for each row of logits [M, V], which may be changed. batch: None for the greatest of each."""
        if batch is None:
            ids, most = self._kernels.sample(logits)
            return Sampled(ids, most)
        chosen = self._choose(logits, batch, None)
        self._append(batch, chosen.ids[:, None], None, None)
        return chosen

    def verify(
        self, logits: Tensor, batch: SamplingBatch | None, proposed: Sequence[Sequence[int] | np.ndarray]
    ) -> Verified:
        """Choose tokens for N sequences, of which proposed[n] ids were guessed, at logits [R, V], which may be changed.

        Sequence n has len(proposed[n]) + 1 rows in order; row j follows the first j of its ids, and batch has its slot and output
        position. Each row is sampled as `sample` would, with its position's random number, and a proposal stands as far as it says the
        same. So an id x stands with probability p(x), what comes in its place has the distribution of the rest, and the
        tokens are those that would have come without proposals.
        """
        at = _Proposals.of(proposed)
        if len(at.sequence) != len(logits):
            raise ValueError(f"{len(logits)} rows of logits for proposals that need {len(at.sequence)}")
        chosen = self.sample(logits, None) if batch is None else self._choose(logits, batch, at)
        width = at.ids.shape[1]
        device = chosen.ids.device
        places = torch.from_numpy(np.minimum(at.starts[:, None] + np.arange(width + 1), max(len(logits) - 1, 0)))
        places = places.to(device)
        ids = chosen.ids[places] if len(at.starts) else chosen.ids.new_zeros(0, 1)
        same = (ids[:, :width] == torch.from_numpy(at.ids).to(device)) & chosen.valid[places[:, :width]]
        accepted = same.long().cumprod(1).sum(1)
        if batch is not None:
            self._append(batch, ids, accepted + 1, at)
        return Verified(chosen.ids, chosen.most, chosen.logprobs, chosen.errors, accepted)

    def _choose(self, logits: Tensor, batch: SamplingBatch, at: _Proposals | None) -> Sampled:
        self._reset(batch)
        raw = None
        if batch.logprob_rows is not None:
            raw = logits[self._index(batch.logprob_rows)]
        errors: dict[int, str] = {}
        if any(getattr(batch, name) is not None for name in _EDITS):
            logits = logits.float()
            errors = self._edit_(logits, batch, at)
        cuts = (batch.top_k, batch.top_p, batch.min_p, batch.typical_p)
        ids, most = self._kernels.sample(logits, batch.temperature, batch.uniform, *cuts)
        if errors:
            most[torch.tensor(list(errors), device=most.device)] = torch.nan
        sampled = Sampled(ids, most, None, errors)
        if raw is not None and batch.logprob_rows is not None and batch.logprob_nums is not None:
            extra = np.zeros((0, 2), np.int32) if batch.logprob_extra is None else batch.logprob_extra
            chosen = ids[self._index(batch.logprob_rows)]
            asked = (batch.logprob_rows, chosen, batch.logprob_nums, extra)
            sampled.logprobs = gather_logprobs(raw, *asked, self._kernels)
        return sampled

    def _edit_(self, logits: Tensor, batch: SamplingBatch, at: _Proposals | None) -> dict[int, str]:
        """Apply in place all that comes before the greedy choice."""
        errors: dict[int, str] = {}
        if batch.processor_rows is not None:
            rows = batch.processor_rows
            ahead = None
            if at is not None:
                ahead = [at.ids[at.sequence[row], : at.offset[row]].tolist() for row in rows]
            errors = self._processors.run_(logits, rows.tolist(), batch.slots[rows].tolist(), ahead)
        if batch.mask_rows is not None and batch.masks is not None:
            self._mask_(logits, batch.mask_rows, batch.masks)
        if batch.edit_rows is not None and batch.edit_ids is not None and batch.edit_values is not None:
            where = (self._index(batch.edit_rows), self._index(batch.edit_ids))
            logits.index_put_(where, torch.tensor(batch.edit_values).to(logits), accumulate=True)
        if batch.word_rows is not None:
            self._forbid_words_(logits, batch, at)
        if batch.penalty_rows is not None and batch.penalties is not None:
            rows = batch.penalty_rows
            before = None if at is None else torch.from_numpy(at.ahead(rows)).to(logits.device)
            penalties = torch.tensor(batch.penalties).to(logits)
            self._counts.penalise_(self._kernels, logits, self._index(rows), batch.slots[rows], penalties, before)
        return errors

    def _mask_(self, logits: Tensor, rows: np.ndarray, masks: np.ndarray) -> None:
        octets = torch.from_numpy(masks.astype("<i4").view(np.uint8)).to(logits.device)
        added = self._octets.index_select(0, octets.flatten().int()).view(len(rows), -1)[:, : self._vocab]
        logits.index_add_(0, self._index(rows), added)

    def _forbid_words_(self, logits: Tensor, batch: SamplingBatch, at: _Proposals | None) -> None:
        assert batch.word_rows is not None and batch.word_ids is not None and batch.word_heads is not None
        rows = batch.word_rows
        before = offset = None
        if at is not None:
            before = torch.from_numpy(at.ahead(rows)).to(logits.device)
            offset = torch.from_numpy(at.offset[rows]).to(logits.device)
        heads = self._index(batch.word_heads)
        endings = self._tails.endings(batch.slots[rows], before, offset)[:, -heads.shape[1] :]
        complete = ((heads == endings) | (heads < 0)).all(1)
        values = torch.where(complete, float("-inf"), 0.0)
        logits.index_put_((self._index(rows), self._index(batch.word_ids)), values, accumulate=True)

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._device)

    def _reset(self, batch: SamplingBatch) -> None:
        for slot in () if batch.released is None else batch.released.tolist():
            for state in (self._counts, self._tails, self._processors):
                state.release(slot)
        if batch.resets is None or batch.reset_ids is None:
            return
        start = 0
        counted: list[tuple[int, np.ndarray, np.ndarray]] = []
        for slot, kinds, num_prompt, num_output, head in batch.resets.tolist():
            middle, end = start + num_prompt, start + num_prompt + num_output
            prompt, output = batch.reset_ids[start:middle], batch.reset_ids[middle:end]
            start = end
            if kinds & PENALTIES:
                counted.append((slot, prompt, output))
            if kinds & WORDS:
                self._tails.reset(slot, output, head)
            if kinds & PROCESSORS:
                self._processors.reset(slot, prompt, output, batch.processors[slot])
        if counted:
            self._counts.reset(*zip(*counted, strict=True))

    def _append(self, batch: SamplingBatch, ids: Tensor, count: Tensor | None, at: _Proposals | None) -> None:
        """Add tokens to what is remembered of the outputs: ids [N, P] of rows, or of sequences where there are proposals."""
        users = (
            (self._counts, batch.penalty_rows),
            (self._tails, batch.word_rows),
            (self._processors, batch.processor_rows),
        )
        for state, rows in users:
            if rows is None:
                continue
            who = np.unique(rows if at is None else at.sequence[rows])
            slots = batch.slots[who if at is None else at.starts[who]]
            where = self._index(who)
            state.append(slots, ids[where], None if count is None else count[where])
