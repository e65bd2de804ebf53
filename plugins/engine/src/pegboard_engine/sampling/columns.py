"""How each running request is sampled, as columns over the slots of the running set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pegboard.types import SamplingParams
from pegboard_engine.sampling.batch import PENALTIES, PROCESSORS, WORDS, SamplingBatch
from pegboard_engine.sampling.streams import stream, uniform

DRAWN, TOP_K, TOP_P, MIN_P, TYPICAL, EDITS, MIN_TOKENS, ALLOWED, PENALTY, WORD, PROCESSOR, LOGPROBS, PENDING = (
    1 << bit for bit in range(13)
)
_SIMPLE = DRAWN | TOP_K | TOP_P | MIN_P | TYPICAL
_CUTS = ((TOP_K, "top_k"), (TOP_P, "top_p"), (MIN_P, "min_p"), (TYPICAL, "typical_p"))
# A quotient by a temperature beyond these would leave float32.
_COLDEST, _HOTTEST = 1e-30, 1e30


class SamplingColumns:
    """One row for each of `num_slots` slots; ids are below `vocab_size`. Used by the thread that schedules.

    What a step asks is gathered from the columns; what few requests ask for costs those that do not ask nothing.
    """

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._vocab = vocab_size
        self._flags = np.zeros(num_slots, np.int32)
        self._seed = np.zeros(num_slots, np.uint64)
        self._temperature = np.zeros(num_slots, np.float32)
        self._cuts = {
            "top_k": np.zeros(num_slots, np.int32),
            "top_p": np.ones(num_slots, np.float32),
            "min_p": np.zeros(num_slots, np.float32),
            "typical_p": np.ones(num_slots, np.float32),
        }
        self._penalties = np.zeros((num_slots, 3), np.float32)
        self._min_tokens = np.zeros(num_slots, np.int64)
        self._logprobs = np.zeros(num_slots, np.int32)
        self._rare: dict[int, _Rare] = {}
        self._held: set[int] = set()
        self._released: list[int] = []

    def set(
        self,
        slot: int,
        params: SamplingParams,
        *,
        seed: int,
        answer: int = 0,
        end_ids: Iterable[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        prompt_ids: Sequence[int] | np.ndarray = (),
        output_ids: Sequence[int] | np.ndarray = (),
    ) -> None:
        """Put an answer of a request into a slot; params have passed `check_params`.

        seed: of the request. answer: which of its n. end_ids: ids that may not come before min_tokens. bad_words: each as ids; a word
        is matched within the output alone. prompt_ids, output_ids: all that is known; after a preemption the output comes again.
        """
        self.clear(slot)
        p, flags = params, 0
        if p.temperature > 0:
            flags |= DRAWN
            self._temperature[slot] = min(max(p.temperature, _COLDEST), _HOTTEST)
            self._seed[slot] = stream(seed, answer)
            for bit, name, value, off in (
                (TOP_K, "top_k", min(p.top_k, self._vocab), p.top_k == 0 or p.top_k >= self._vocab),
                (TOP_P, "top_p", p.top_p, p.top_p >= 1),
                (MIN_P, "min_p", p.min_p, p.min_p == 0),
                (TYPICAL, "typical_p", p.typical_p, p.typical_p >= 1),
            ):
                if not off:
                    flags |= bit
                    self._cuts[name][slot] = value
        rare = _Rare()
        forbidden = [word[0] for word in bad_words if len(word) == 1]
        if p.logit_bias or forbidden:
            flags |= EDITS
            rare.edit_ids = np.array([*p.logit_bias, *forbidden], np.int32)
            rare.edit_values = np.array([*p.logit_bias.values(), *[-math.inf] * len(forbidden)], np.float32)
        ends = np.array(sorted(set(end_ids)), np.int32)
        if p.min_tokens and ends.size:
            flags |= MIN_TOKENS
            self._min_tokens[slot] = p.min_tokens
            rare.end_ids = ends
        if p.allowed_ids is not None:
            flags |= ALLOWED
            rare.allowed = bitmask(p.allowed_ids, self._vocab)
        if p.logprobs is not None or p.logprob_ids:
            flags |= LOGPROBS
            self._logprobs[slot] = p.logprobs or 0
            rare.extra = np.array(p.logprob_ids, np.int32)
        kinds = self._set_state(slot, p, [word for word in bad_words if len(word) > 1], rare)
        if kinds:
            flags |= PENDING
            flags |= (PENALTY if kinds & PENALTIES else 0) | (WORD if kinds & WORDS else 0)
            flags |= PROCESSOR if kinds & PROCESSORS else 0
            whole = kinds & PROCESSORS or p.repetition_penalty != 1
            rare.prompt = np.asarray(prompt_ids if whole else (), np.int32)
            rare.output = np.asarray(output_ids, np.int32)
            rare.kinds = kinds
        if flags & ~_SIMPLE:
            self._rare[slot] = rare
        self._flags[slot] = flags

    def _set_state(self, slot: int, p: SamplingParams, words: Sequence[Sequence[int]], rare: _Rare) -> int:
        """Return the kinds of state that the sampler must keep of the slot."""
        kinds = 0
        penalties = (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
        if penalties != (1, 0, 0):
            kinds |= PENALTIES
            self._penalties[slot] = penalties
        if words:
            kinds |= WORDS
            rare.heads = np.full((len(words), max(map(len, words)) - 1), -1, np.int32)
            for row, word in zip(rare.heads, words, strict=True):
                row[len(row) + 1 - len(word) :] = word[:-1]
            rare.word_ids = np.array([word[-1] for word in words], np.int32)
        if p.processors:
            kinds |= PROCESSORS
            rare.processors = [(name, dict(options)) for name, options in p.processors]
        return kinds

    def clear(self, slot: int) -> None:
        """Forget what a slot holds, if anything."""
        self._flags[slot] = 0
        self._rare.pop(slot, None)
        if slot in self._held:
            self._held.remove(slot)
            self._released.append(slot)

    def batch(
        self, slots: np.ndarray, positions: np.ndarray, masks: Mapping[int, np.ndarray] | None = None
    ) -> SamplingBatch | None:
        """Return how to sample rows that belong to `slots` [M] int32; None when all take the greatest logit and ask nothing else.

        positions: [M] int64, the place in the output that the row's token will have. A slot may have several rows, for
        verifying a proposal. masks: row -> [ceil(V / 32)] int32 of the ids that a grammar allows.
        The first batch with a slot carries the state that the sampler needs of it: each batch must reach the sampler, in order.
        """
        flags = self._flags.take(slots)
        wanted = int(np.bitwise_or.reduce(flags)) if len(flags) else 0
        if not wanted and not masks:
            return None
        batch = SamplingBatch(slots.astype(np.int32))
        if wanted & DRAWN:
            batch.temperature = np.where(flags & DRAWN, self._temperature.take(slots), np.float32(0))
            batch.uniform = uniform(self._seed.take(slots), positions)
            for bit, name in _CUTS:
                if wanted & bit:
                    setattr(batch, name, np.where(flags & bit, self._cuts[name].take(slots), _OFF[name]))
        if wanted & (EDITS | MIN_TOKENS):
            self._edits(batch, flags, positions)
        if masks or wanted & ALLOWED:
            self._masks(batch, flags, masks or {})
        if wanted & PENALTY:
            rows = _rows(flags, PENALTY)
            batch.penalty_rows, batch.penalties = rows, self._penalties[slots[rows]]
        if wanted & WORD:
            self._words(batch, flags)
        if wanted & PROCESSOR:
            batch.processor_rows = _rows(flags, PROCESSOR)
        if wanted & LOGPROBS:
            self._asked(batch, flags)
        if wanted & PENDING:
            self._reset(batch, flags)
        if self._released:
            batch.released = np.array(self._released, np.int32)
            self._released = []
        return batch

    def _edits(self, batch: SamplingBatch, flags: np.ndarray, positions: np.ndarray) -> None:
        rows, ids, values = [], [], []
        for row in _rows(flags, EDITS):
            rare = self._rare[int(batch.slots[row])]
            rows.append(row)
            ids.append(rare.edit_ids)
            values.append(rare.edit_values)
        early = (flags & MIN_TOKENS != 0) & (positions < self._min_tokens.take(batch.slots))
        for row in np.flatnonzero(early):
            ends = self._rare[int(batch.slots[row])].end_ids
            rows.append(row)
            ids.append(ends)
            values.append(np.full(len(ends), -math.inf, np.float32))
        if rows:
            batch.edit_rows = np.repeat(np.array(rows, np.int32), [len(part) for part in ids])
            batch.edit_ids, batch.edit_values = np.concatenate(ids), np.concatenate(values)

    def _masks(self, batch: SamplingBatch, flags: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
        allowed = _rows(flags, ALLOWED)
        rows = sorted({*masks, *allowed.tolist()})
        batch.mask_rows = np.array(rows, np.int32)
        batch.masks = np.full((len(rows), -(-self._vocab // 32)), -1, np.int32)
        for out, row in zip(batch.masks, rows, strict=True):
            if row in masks:
                out &= masks[row]
            if flags[row] & ALLOWED:
                out &= self._rare[int(batch.slots[row])].allowed

    def _words(self, batch: SamplingBatch, flags: np.ndarray) -> None:
        rows = _rows(flags, WORD)
        held = [self._rare[slot] for slot in batch.slots[rows].tolist()]
        batch.word_rows = np.repeat(rows, [len(rare.word_ids) for rare in held])
        batch.word_ids = np.concatenate([rare.word_ids for rare in held])
        batch.word_heads = np.full((len(batch.word_ids), max(rare.heads.shape[1] for rare in held)), -1, np.int32)
        start = 0
        for rare in held:
            count, length = rare.heads.shape
            batch.word_heads[start : start + count, batch.word_heads.shape[1] - length :] = rare.heads
            start += count

    def _asked(self, batch: SamplingBatch, flags: np.ndarray) -> None:
        rows = batch.logprob_rows = _rows(flags, LOGPROBS)
        slots = batch.slots[rows]
        batch.logprob_nums = self._logprobs[slots]
        extra = [self._rare[slot].extra for slot in slots.tolist()]
        if any(part.size for part in extra):
            owners = np.repeat(np.arange(len(rows), dtype=np.int32), [len(part) for part in extra])
            batch.logprob_extra = np.stack([owners, np.concatenate(extra)], 1)

    def _reset(self, batch: SamplingBatch, flags: np.ndarray) -> None:
        slots = np.unique(batch.slots[_rows(flags, PENDING)])
        self._flags[slots] &= ~PENDING
        self._held.update(slots.tolist())
        resets, ids = [], []
        for slot in slots.tolist():
            rare = self._rare[slot]
            resets.append((slot, rare.kinds, len(rare.prompt), len(rare.output), rare.heads.shape[1]))
            ids += [rare.prompt, rare.output]
            # They are the sampler's from now on.
            rare.prompt = rare.output = _NO_IDS
            if rare.processors:
                batch.processors[slot] = rare.processors
        batch.resets, batch.reset_ids = np.array(resets, np.int32), np.concatenate(ids)


def bitmask(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """Return [ceil(V / 32)] int32 in which exactly `ids` are allowed."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[np.fromiter(ids, np.int64)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32, copy=False)


_NO_IDS = np.zeros(0, np.int32)
_OFF: dict[str, Any] = {
    "top_k": np.int32(0),
    "top_p": np.float32(1),
    "min_p": np.float32(0),
    "typical_p": np.float32(1),
}


class _Rare:
    """What few requests ask for: arrays of one slot."""

    __slots__ = (
        "allowed",
        "edit_ids",
        "edit_values",
        "end_ids",
        "extra",
        "heads",
        "kinds",
        "output",
        "processors",
        "prompt",
        "word_ids",
    )

    def __init__(self) -> None:
        self.edit_ids = self.end_ids = self.extra = self.prompt = self.output = self.word_ids = self.allowed = _NO_IDS
        self.edit_values = np.zeros(0, np.float32)
        self.heads = np.zeros((0, 0), np.int32)
        self.kinds = 0
        self.processors: list[tuple[str, Mapping[str, Any]]] = []


def _rows(flags: np.ndarray, bit: int) -> np.ndarray:
    """Return the rows that have a flag, as int32."""
    return np.flatnonzero(flags & bit).astype(np.int32)
