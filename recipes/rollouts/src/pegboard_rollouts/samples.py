"""Answers of a rollout, as values and as tensors of a step folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pegboard.types import Row
from pegboard_trainer.examples import Key

ANSWER = "answer"
"""The part that every answer is in its batch."""


@dataclass(slots=True)
class Sample:
    """One answer to one prompt.

    ids: of prompt and answer. prompt: how many of them are the prompt's. key: of the prompt. finished: whether it came to its end.
    learned: whether its tokens are learned from. reward: what it is worth. numbers: float32 tensors by name, one number for each
    token of the answer. extras: one number for the answer, by name.
    """

    ids: list[int]
    prompt: int
    key: Key
    finished: bool
    reward: float = 0.0
    learned: bool = True
    numbers: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.prompt

    def row(self) -> Row:
        """Return it as a sequence whose answer is to be learned."""
        mask = [False] * self.prompt + [self.learned] * self.length
        before = [0.0] * self.prompt
        numbers = {name: before + values.tolist() for name, values in self.numbers.items()}
        return Row(self.ids, mask, self.extras, ANSWER, numbers)


_FLAGS = ("finished", "learned")


def to_tensors(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return samples as tensors by name, from which `from_tensors` makes the same."""
    if not samples:
        return {}
    table = [[len(s.ids), s.prompt, *s.key, *(int(getattr(s, flag)) for flag in _FLAGS)] for s in samples]
    found = {
        "rollout.table": torch.tensor(table, dtype=torch.int64),
        "rollout.ids": torch.tensor([token for s in samples for token in s.ids], dtype=torch.int64),
        "rollout.reward": torch.tensor([s.reward for s in samples], dtype=torch.float64),
    }
    for name in samples[0].numbers:
        found[f"rollout.numbers.{name}"] = torch.cat([s.numbers[name] for s in samples])
    for name in samples[0].extras:
        found[f"rollout.extras.{name}"] = torch.tensor([s.extras[name] for s in samples], dtype=torch.float64)
    return found


def from_tensors(tensors: Mapping[str, Tensor]) -> list[Sample]:
    """Return the samples of `to_tensors`; none where the tensors hold none."""
    if "rollout.table" not in tensors:
        return []
    ids, rewards = tensors["rollout.ids"].tolist(), tensors["rollout.reward"].tolist()
    numbers = {name[16:]: values for name, values in tensors.items() if name.startswith("rollout.numbers.")}
    extras = {name[15:]: values.tolist() for name, values in tensors.items() if name.startswith("rollout.extras.")}
    samples, start, answered = [], 0, 0
    for number, (total, prompt, epoch, place, sub, finished, learned) in enumerate(tensors["rollout.table"].tolist()):
        sample = Sample(ids[start : start + total], prompt, (epoch, place, sub), bool(finished), rewards[number])
        sample.learned = bool(learned)
        end = answered + sample.length
        sample.numbers = {name: values[answered:end].clone() for name, values in numbers.items()}
        sample.extras = {name: values[number] for name, values in extras.items()}
        samples.append(sample)
        start, answered = start + total, end
    return samples
