"""The data's batches, in a share of which the answers are the student's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pegboard.types import Batch, Row, SamplingParams
from pegboard_distill.config import DistillConfig
from pegboard_rollouts.sampler import PolicySampler
from pegboard_trainer.ahead import Ahead
from pegboard_trainer.collate import collate
from pegboard_trainer.examples import Key
from pegboard_trainer.setting import Setting
from pegboard_trainer.source import BatchSource, Packed


class OwnAnswers:
    """On-policy distillation (GKD, algorithm 1 of arXiv:2306.13649): prompts of the data with answers sampled from the student.

    A prompt is what stands before the first token to be learned. Which batches are answered, and how, depends on the seed and the
    batch's number alone. Nothing of a batch outlives the step that takes it, so the position is all that a resumed run needs.
    """

    def __init__(self, setting: Setting, data: BatchSource) -> None:
        self._config = config = cast(DistillConfig, setting.config)
        assert config.rollout is not None
        self._rollout, self._data, self._rank = config.rollout, data, setting.world.rank
        self._sampler = PolicySampler.of(setting, setting.roles["policy"], config.rollout.engine)
        self._number = 0
        self._own = self._batches = self._tokens = self._answers = 0

    def __next__(self) -> tuple[list[Key], Batch]:
        """Return the next batch of the data, with the student's answers where the draw says so."""
        keys, batch = next(self._data)
        self._number += 1
        self._batches += 1
        drawn = torch.rand((), generator=torch.Generator().manual_seed(self._seed("share"))).item()
        if drawn >= self._rollout.share:
            return keys, batch
        if not keys:
            self._sampler.answers([], [])  # the other ranks ask now
            return keys, batch
        self._own += 1
        return keys, self._answered(batch)

    def state(self) -> dict[str, Any]:
        """Return the position."""
        return {"data": self._data.state(), "number": self._number}

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing: a batch is sampled when it is asked for."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue behind a position."""
        self._data.restore(state["data"], tensors)
        self._number = state["number"]

    def at(self, key: Key) -> Sequence[Row]:
        """Return an example of the data."""
        return self._data.at(key)

    def describe(self, key: Key) -> str:
        """Return where an example stands in its file."""
        return self._data.describe(key)

    def summary(self) -> str:
        """Return how many examples were used."""
        return self._data.summary()

    def metrics(self) -> Mapping[str, tuple[float, float]]:
        """Return the share of batches with the student's answers, and the tokens of an answer, since the last call."""
        found = {"own_batches": (self._own, self._batches), "answer_tokens": (self._tokens, self._answers)}
        self._own = self._batches = self._tokens = self._answers = 0
        return found

    def _answered(self, batch: Batch) -> Batch:
        """Return the prompts of a batch with other answers."""
        learned = (batch.targets >= 0).split(batch.seq_lens)
        prompts = [
            ids[: int(flags.int().argmax()) + 1].tolist()
            for ids, flags in zip(batch.input_ids.split(batch.seq_lens), learned, strict=True)
        ]
        params = [
            SamplingParams(
                max_tokens=min(self._rollout.max_tokens, self._config.batch.length - len(prompt)),
                temperature=self._rollout.temperature,
                seed=self._seed(f"answer {self._rank} {number}"),
                detokenize=False,
            )
            for number, prompt in enumerate(prompts)
        ]
        rows = []
        for prompt, (answer,) in zip(prompts, self._sampler.answers(prompts, params), strict=True):
            rows.append(Row([*prompt, *answer.ids], [False] * len(prompt) + [True] * len(answer.ids)))
            self._tokens += len(answer.ids)
        self._answers += len(rows)
        return collate(rows)

    def _seed(self, what: str) -> int:
        text = f"{self._config.seed} {self._number} {what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def make(setting: Setting) -> BatchSource:
    """Return the batches of a run: the data's, or with the section `rollout` such as the student answers itself."""
    config = cast(DistillConfig, setting.config)
    train, ahead = setting.data.train, config.batch.ahead
    data = Packed(Ahead(train, ahead) if ahead else train, setting.world.rank, setting.world.size)
    return data if config.rollout is None else OwnAnswers(setting, data)
