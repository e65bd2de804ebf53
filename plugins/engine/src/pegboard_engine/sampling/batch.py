"""What one step asks of the sampler: numpy arrays and plain values, which go to another process as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

PENALTIES, WORDS, PROCESSORS = 1, 2, 4
"""Kinds of state that a slot has on the sampler's side; `SamplingBatch.resets` holds their sum."""


@dataclass(slots=True)
class SamplingBatch:
    """How to sample M rows of logits. An array that no row needs is None; rows are numbered by their place in `slots`.

    slots: [M] int32, the slot of the running set that each row belongs to.
    temperature [M] float32, 0 is greedy; uniform [M] float64 in [0, 1). None: all are greedy.
    top_k [M] int32, 0 is off; top_p, min_p, typical_p [M] float32.
    edit_rows, edit_ids [E] int32, edit_values [E] float32: added to these logits; -inf forbids.
    mask_rows [A] int32, masks [A, ceil(V / 32)] int32: bit i % 32 of word i // 32 allows id i; a row stands here once.
    penalty_rows [P] int32, penalties [P, 3] float32: repetition, presence, frequency.
    word_rows, word_ids [B] int32, word_heads [B, L] int32: forbids the id where the row's output ends with the head, which is padded
    on the left with -1.
    processor_rows [Q] int32: rows whose slot has logits processors.
    logprob_rows [R] int32, logprob_nums [R] int32: how many of the most probable ids, -1 for all; logprob_extra [X, 2] int32: pairs
    of an index into logprob_rows and an id, by that index.
    released: slots whose state is no longer needed. resets [S, 5] int32: slot, kinds of state, number of ids in prompt and output,
    longest head; reset_ids: those ids, one after the other. processors: for each slot of `resets` with processors (name, options).
    Releases come first, then resets, then the step.
    """

    slots: np.ndarray
    temperature: np.ndarray | None = None
    uniform: np.ndarray | None = None
    top_k: np.ndarray | None = None
    top_p: np.ndarray | None = None
    min_p: np.ndarray | None = None
    typical_p: np.ndarray | None = None
    edit_rows: np.ndarray | None = None
    edit_ids: np.ndarray | None = None
    edit_values: np.ndarray | None = None
    mask_rows: np.ndarray | None = None
    masks: np.ndarray | None = None
    penalty_rows: np.ndarray | None = None
    penalties: np.ndarray | None = None
    word_rows: np.ndarray | None = None
    word_ids: np.ndarray | None = None
    word_heads: np.ndarray | None = None
    processor_rows: np.ndarray | None = None
    logprob_rows: np.ndarray | None = None
    logprob_nums: np.ndarray | None = None
    logprob_extra: np.ndarray | None = None
    released: np.ndarray | None = None
    resets: np.ndarray | None = None
    reset_ids: np.ndarray | None = None
    processors: dict[int, list[tuple[str, Mapping[str, Any]]]] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Return (JSON values, arrays), from which `unpack` makes the same."""
        names = [name for name in _ARRAYS if getattr(self, name) is not None]
        processors = [[slot, [[name, dict(o)] for name, o in calls]] for slot, calls in self.processors.items()]
        return {"arrays": names, "processors": processors}, [getattr(self, name) for name in names]

    @classmethod
    def unpack(cls, header: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> SamplingBatch:
        """Return what was packed. The arrays are used as they are; nothing writes into them."""
        processors = {int(slot): [(name, options) for name, options in calls] for slot, calls in header["processors"]}
        return cls(**dict(zip(header["arrays"], arrays, strict=True)), processors=processors)


_ARRAYS = [f.name for f in fields(SamplingBatch) if f.name != "processors"]
