"""Speculator `draft`: a small model of the same vocabulary guesses what the large one will say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pegboard.errors import ConfigError
from pegboard.interfaces.speculator import Speculator
from pegboard.opened import open_any
from pegboard.types import CachePlan, StepPlan
from pegboard_engine.memory import cache_layout
from pegboard_engine.pages import PagePool
from pegboard_engine.runner import Runner

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry


class DraftOptions(BaseModel):
    """model: a folder, file or hub id. most: tokens proposed at once. dtype: of the small model. kv_tokens: tokens that its cache
    holds for all sequences together. max_num_seqs: sequences that it proposes for at once; others get no proposal. max_num_tokens:
    tokens that it computes at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str | None = None
    most: int = Field(default=4, ge=1, le=64)
    dtype: str = "auto"
    kv_tokens: int = Field(default=16384, ge=64)
    max_num_seqs: int = Field(default=64, ge=1)
    max_num_tokens: int = Field(default=2048, ge=1)


@dataclass(slots=True)
class _Sequence:
    """What the small model holds of a sequence. tokens: those whose keys are in its cache, at the beginning of the slot's pages."""

    slot: int
    pages: list[int] = field(default_factory=list)
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))


_PAGE = 16


class DraftSpeculator(Speculator):
    """Greedy guesses of a model that keeps a cache of its own.

    Of what it guessed, the keys stay as far as the large model agreed. When its cache is full, sequences it has not been asked for
    longest are forgotten and computed anew when they come again.
    """

    def __init__(self, options: DraftOptions) -> None:
        self.options = options
        self.most = options.most
        self._sequences: dict[int, _Sequence] = {}
        self._steps = 0
        self._changes: list[tuple[int, int, list[int]]] = []

    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        options = self.options
        opened = open_any(registry, options.model, options.revision)
        own = opened.prepare(
            registry, platform=built.platform_name, device=built.device.index or 0, dtype=options.dtype
        )
        if own.model.vocab_size != built.model.vocab_size:
            raise ConfigError(
                f"the draft model {options.model} has {own.model.vocab_size} ids, the model {built.model.vocab_size}",
                fix="use a draft model of the same vocabulary",
            )
        self.use(own)

    def use(self, own: BuiltModel) -> None:
        """Propose with a model that is prepared."""
        options = self.options
        num_pages = 1 + options.kv_tokens // _PAGE
        self._longest = min(own.model.max_positions, options.kv_tokens)
        self._pool = PagePool(num_pages)
        # After a check, what came in the place of a wrong guess is computed, and the last guess before it where all were right.
        cache = CachePlan(
            cache_layout(own, _PAGE), num_pages, options.max_num_seqs, -(-self._longest // _PAGE), most_queries=2
        )
        self._slots = list(range(options.max_num_seqs))
        self._runner = Runner(own.load(), cache)

    def propose(self, keys: Sequence[int], tokens: Sequence[Sequence[int]], most: Sequence[int]) -> list[Sequence[int]]:
        proposals: list[list[int]] = [[] for _ in keys]
        wanted = [min(count, self.most) for count in most]
        chosen = []
        for index, (key, row, count) in enumerate(zip(keys, tokens, wanted, strict=True)):
            if count > 0 and len(row) + count <= self._longest and self._enter(key, len(row) + count, set(keys)):
                chosen.append(index)
        rows = {index: np.asarray(tokens[index], dtype=np.int32) for index in chosen}
        for index in chosen:
            # Keys of tokens that the large model did not take are written over.
            held = self._sequences[keys[index]]
            same = held.tokens[: len(rows[index]) - 1] == rows[index][: len(held.tokens)][: len(rows[index]) - 1]
            held.tokens = held.tokens[: len(same) if same.all() else int(same.argmin())]
        for number in range(max((wanted[index] for index in chosen), default=0)):
            going = [index for index in chosen if wanted[index] > number]
            for index, token in zip(going, self._next([keys[i] for i in going], [rows[i] for i in going]), strict=True):
                proposals[index].append(token)
                rows[index] = np.append(rows[index], np.int32(token))
        return list(proposals)

    def forget(self, keys: Sequence[int]) -> None:
        for key in keys:
            held = self._sequences.pop(key, None)
            if held is not None:
                self._pool.free(held.pages)
                self._slots.append(held.slot)

    def close(self) -> None:
        self.forget(list(self._sequences))
        self._runner = None  # type: ignore[assignment]  # nothing is asked for after this

    def _enter(self, key: int, length: int, needed: set[int]) -> bool:
        """Give a sequence its slot and the pages for `length` tokens; False where there is no room beside the `needed` ones."""
        held = self._sequences.pop(key, None)
        missing = -(-length // _PAGE) - (0 if held is None else len(held.pages))
        for other in list(self._sequences):
            if missing <= self._pool.num_free and (held is not None or self._slots):
                break
            if other not in needed:
                self.forget([other])
        if missing > self._pool.num_free or (held is None and not self._slots):
            if held is not None:
                self._sequences[key] = held
            return False
        held = held or _Sequence(self._slots.pop())
        if missing > 0:
            first = len(held.pages)
            held.pages += self._pool.allocate(missing, after=held.pages[-1] if held.pages else 0)
            self._changes.append((held.slot, first, held.pages[first:]))
        # The end of the dictionary is what was asked for last.
        self._sequences[key] = held
        return True

    def _next(self, keys: Sequence[int], rows: Sequence[np.ndarray]) -> list[int]:
        """Compute what is missing of each sequence and return the most probable next ids."""
        held, drawn = [self._sequences[key] for key in keys], [0] * len(keys)
        while True:
            left, budget = [], self.options.max_num_tokens
            for one, row in zip(held, rows, strict=True):
                left.append(min(len(row) - len(one.tokens), budget))
                budget -= left[-1]
            for index, token in self._run(held, rows, left):
                drawn[index] = token
            if all(len(one.tokens) == len(row) for one, row in zip(held, rows, strict=True)):
                return drawn

    def _run(
        self, held: Sequence[_Sequence], rows: Sequence[np.ndarray], counts: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Compute the next counts[i] tokens of each sequence; return (index, most probable next id) of those that had any."""
        begins = [len(one.tokens) for one in held]
        positions = [np.arange(begin, begin + count) for begin, count in zip(begins, counts, strict=True)]
        ids = [row[places] for row, places in zip(rows, positions, strict=True)]
        slots = [
            np.array(one.pages, dtype=np.int64)[places // _PAGE] * _PAGE + places % _PAGE
            for one, places in zip(held, positions, strict=True)
        ]
        running = [index for index, count in enumerate(counts) if count]
        self._steps += 1
        lens = np.array([counts[index] for index in running], dtype=np.int32)
        numbers = np.array([held[index].slot for index in running], dtype=np.int32)
        plan = StepPlan(
            step=self._steps,
            input_ids=np.concatenate(ids).astype(np.int64),
            positions=np.concatenate(positions),
            slots=numbers,
            query_lens=lens,
            seq_lens=lens + np.array([begins[index] for index in running], dtype=np.int32),
            slot_mapping=np.concatenate(slots),
            num_decodes=len(lens) if (lens == 1).all() else 0,
            table=self._table_changes(),
            logits_indices=lens.cumsum() - 1,
            logits_slots=numbers,
        )
        result = self._runner.start(plan).wait()
        for index in running:
            held[index].tokens = np.concatenate([held[index].tokens, ids[index]])
        return list(zip(running, result.token_ids.tolist(), strict=True))

    def _table_changes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what changed in the block table since the last step, as a StepPlan has it."""
        changes, self._changes = self._changes, []
        slots = [slot for slot, _, pages in changes for _ in pages]
        columns = [first + index for _, first, pages in changes for index in range(len(pages))]
        numbers = [page for _, _, pages in changes for page in pages]
        return np.array(slots, np.int32), np.array(columns, np.int32), np.array(numbers, np.int32)
