"""A device samples what the host samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pegboard.types import SamplingParams
from pegboard_engine.sampling.columns import SamplingColumns, bitmask
from pegboard_engine.sampling.sampler import Sampler

VOCAB = 50_257
CASES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 40, "min_p": 0.01},
    {"temperature": 1.0, "typical_p": 0.5},
    {"temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "logprobs": 3},
    {"temperature": 1.0, "bad_words": ("x",), "logit_bias": {7: 4.0}, "logprob_ids": (1, 2)},
]


@pytest.mark.gpu
@pytest.mark.parametrize("proposed", [0, 2])
def test_the_same_tokens(proposed: int) -> None:
    rows = len(CASES)
    outputs = []
    generator = np.random.default_rng(0)
    steps = [generator.standard_normal((rows * (proposed + 1), VOCAB)).astype(np.float32) * 2 for _ in range(6)]
    for device in ("cpu", "cuda"):
        columns, sampler = SamplingColumns(rows, VOCAB), Sampler(VOCAB, device)
        for slot, case in enumerate(CASES):
            words = [[7], [9, 9]] if "bad_words" in case else []
            columns.set(slot, SamplingParams(**case), seed=slot, bad_words=words, prompt_ids=range(50), output_ids=[3])
        found: list[Any] = []
        for i, step in enumerate(steps):
            slots = np.repeat(np.arange(rows, dtype=np.int32), proposed + 1)
            positions = 1 + i + np.tile(np.arange(proposed + 1), rows)
            batch = columns.batch(slots, positions, {0: bitmask(range(0, VOCAB, 2), VOCAB)})
            logits = torch.from_numpy(step.copy()).to(device)
            guesses = [[int(row[:VOCAB].argmax())] * proposed for row in step[:: proposed + 1]]
            sampled = sampler.verify(logits, batch, guesses) if proposed else sampler.sample(logits, batch)
            assert sampled.valid.all() and sampled.logprobs is not None
            found.append((sampled.ids.tolist(), [one.token_id for one in sampled.logprobs.tokens()]))
        outputs.append(found)
    assert outputs[0] == outputs[1]
