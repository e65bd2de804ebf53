"""Rollouts as a source of batches: prompts are answered, judged and learned from, one rollout after another."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pegboard.errors import ConfigError, DataError
from pegboard.interfaces.reward import Answered
from pegboard.types import Batch, Example, Row, SamplingParams
from pegboard_rollouts.config import RolloutConfig
from pegboard_rollouts.rewards import Rewards
from pegboard_rollouts.sampler import Answer, PolicySampler
from pegboard_rollouts.samples import Sample, from_tensors, to_tensors
from pegboard_rollouts.scoring import answer_logps, by_sample, check_temperature
from pegboard_trainer.collate import collate
from pegboard_trainer.examples import Key
from pegboard_trainer.setting import Setting

Prompt = tuple[Key, Row]

UNKNOWN = 10_000
"""Prompts in a row that may be too long before there seem to be no others, where the number of rows is not known."""


class RolloutSource(ABC):
    """Batches of answers, `batch.size` a batch, `rollout.epochs` times over those of each rollout, in an order drawn anew each time.

    A subclass says in `study` what is learned from the answers. Every rank answers its share of the prompts; what is sampled depends
    on the seed, the rollout and the prompt's number alone. Ranks of one tensor group share answers and what these are worth.
    `evaluate` is there where the data have held-out prompts.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config = config = cast(RolloutConfig, setting.config)
        self.policy = setting.roles["policy"]
        self.rewards = Rewards(config.rewards, setting.registry)
        _check(config, setting.world.size)
        check_temperature(self.policy, config.rollout.temperature)
        self._sampler = PolicySampler.of(setting, self.policy, config.rollout.engine)
        self._examples = setting.data.train.examples
        self._prompts: Iterator[tuple[Key, Example]] | None = None
        self._samples: list[Sample] = []
        self._rollout = self._used = self._left_out = 0
        self._metrics: dict[str, list[float]] = {}
        if setting.data.held_out is not None:
            self.evaluate = self._evaluate

    @abstractmethod
    def study(self, samples: Sequence[Sample]) -> None:
        """Give the samples of a new rollout, whose rewards are set, the numbers that the objective wants.

        Samples come prompt by prompt, `rollout.answers` each. Every one has the number "old_logps" already.
        """

    @property
    def judges(self) -> bool:
        """Whether anything says what an answer is worth."""
        return len(self.rewards) > 0

    def judge(
        self, samples: Sequence[Sample], answered: Sequence[Answered]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """Return what each answer is worth, and the parts of that by name. The same answers come in two forms."""
        return self.rewards(answered)

    def __iter__(self) -> RolloutSource:
        return self

    def __next__(self) -> tuple[list[Key], Batch]:
        """Return the next batch, after a new rollout where the last one is used up."""
        size, epochs = self.config.batch.size, self.config.rollout.epochs
        if not self._samples or self._used >= epochs * len(self._samples) // size:
            self._roll()
        per_epoch = len(self._samples) // size
        epoch, place = divmod(self._used, per_epoch)
        order = torch.randperm(len(self._samples), generator=self._generator("order", epoch)).tolist()
        chosen = [self._samples[index] for index in order[place * size : (place + 1) * size]]
        self._used += 1
        return [sample.key for sample in chosen], collate([sample.row() for sample in chosen])

    def state(self) -> dict[str, Any]:
        """Return the position: in the prompts, among the rollouts, and in the last one."""
        return {
            "prompts": list(self._examples.next_key),
            "rollout": self._rollout,
            "used": self._used,
            "left_out": self._left_out,
        }

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the samples of the last rollout."""
        return to_tensors(self._samples)

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue inside a rollout, with the answers that it had."""
        self._examples.next_key = cast(Key, tuple(state["prompts"]))
        self._prompts = None
        self._rollout, self._used, self._left_out = state["rollout"], state["used"], state["left_out"]
        self._samples = from_tensors(tensors)

    def at(self, key: Key) -> Sequence[Row]:
        """Return the prompt of a key, with the answers of the last rollout to it."""
        return [*self._examples.at(key), *(sample.row() for sample in self._samples if sample.key == key)]

    def describe(self, key: Key) -> str:
        """Return where a prompt stands in its file."""
        return self._examples.describe(key)

    def summary(self) -> str:
        """Return how many rollouts there were."""
        rollout = self.config.rollout
        line = f"data: {self._rollout:,} rollouts of {rollout.prompts} x {rollout.answers} answers"
        return line + (f", {self._left_out:,} prompts left out, being too long" if self._left_out else "")

    def metrics(self) -> Mapping[str, tuple[float, float]]:
        """Return what happened since the last call."""
        taken, self._metrics = self._metrics, {}
        return {name: (total, count) for name, (total, count) in taken.items()}

    def note(self, name: str, total: float, count: float) -> None:
        """Add to a metric."""
        pair = self._metrics.setdefault(name, [0.0, 0.0])
        pair[0], pair[1] = pair[0] + total, pair[1] + count

    def logps(self, role: str, samples: Sequence[Sample]) -> list[Tensor]:
        """Return what a role's model gives the tokens of each answer, without gradient."""
        temperature = self.config.rollout.temperature
        return by_sample(
            samples,
            self.setting.roles[role],
            lambda model, batch: answer_logps(model, batch, temperature),
            self.config.batch.size,
            self.setting.device,
        )

    def _roll(self) -> None:
        """Sample a rollout, judge it, and study it."""
        world, rollout = self.setting.world, self.config.rollout
        self._rollout, self._used = self._rollout + 1, 0
        numbered = list(enumerate(self._next_prompts(rollout.prompts)))[world.rank :: world.size]
        prompts = [prompt for _, prompt in numbered]
        params = [
            SamplingParams(
                max_tokens=rollout.max_tokens,
                temperature=rollout.temperature,
                top_k=rollout.top_k,
                top_p=rollout.top_p,
                n=rollout.answers,
                seed=self._seed("answers", number),
                logprobs=0,
            )
            for number, _ in numbered
        ]
        found = self._sampler.answers([row.input_ids for _, row in prompts], params)
        pairs = [(prompt, answer) for prompt, answers in zip(prompts, found, strict=True) for answer in answers]
        self._samples = [_sample(prompt, answer) for prompt, answer in pairs]
        self._judge(self._samples, [self._answered(row, answer) for (_, row), answer in pairs])
        self._compare([answer for _, answer in pairs])
        self.study(self._samples)

    def _judge(self, samples: Sequence[Sample], answered: Sequence[Answered]) -> None:
        count = len(samples)
        if self.judges:
            totals, parts = self.setting.world.tensor_parts(self.judge(samples, answered))[0]
            for sample, total in zip(samples, totals, strict=True):
                sample.reward = total
            self.note("reward", sum(totals), count)
            for name, values in parts.items():
                self.note(f"reward/{name}", sum(values), count)
        self.note("answer_tokens", sum(sample.length for sample in samples), count)
        self.note("finished", sum(sample.finished for sample in samples), count)

    def _compare(self, answers: Sequence[Answer]) -> None:
        """Take the policy's log-probabilities, and note how far those of the engine are from them."""
        for sample, logps in zip(self._samples, self.logps("policy", self._samples), strict=True):
            sample.numbers["old_logps"] = logps
        if self.config.rollout.temperature == 1:
            for sample, answer in zip(self._samples, answers, strict=True):
                gap = (sample.numbers["old_logps"] - torch.tensor(answer.logps)).abs().sum()
                self.note("sampling_gap", float(gap), sample.length)

    def _answered(self, row: Row, answer: Answer) -> Answered:
        prompt = self.setting.tokenizer.decode(row.input_ids)
        return Answered(prompt, answer.text, answer.ids, answer.finished, row.extras)

    def _next_prompts(self, count: int) -> list[Prompt]:
        """Return the next prompts that leave room for an answer, the same on every rank."""
        if self._prompts is None:
            self._prompts = iter(self._examples)
        room = self.config.batch.length - self.config.rollout.max_tokens
        found: list[Prompt] = []
        passed = 0
        for key, example in self._prompts:
            if len(example) != 1 or example[0].part != "prompt":
                raise DataError("the data are not prompts", fix="set data.format=prompt")
            if 0 < len(example[0].input_ids) <= room:
                found.append((key, example[0]))
                passed = 0
            else:
                self._left_out += 1
                passed += 1
            if len(found) == count:
                return found
            if passed > (self._examples.rows or UNKNOWN):
                break
        raise DataError(
            f"no further prompt has at most {room} tokens (batch.length less rollout.max_tokens)",
            fix="raise batch.length, or lower rollout.max_tokens",
        )

    def _evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts greedily; return the mean reward and length."""
        held_out, world = self.setting.data.held_out, self.setting.world
        assert held_out is not None
        room = self.config.batch.length - self.config.rollout.max_tokens
        prompts = [(k, example[0]) for k, example in held_out().examples if 0 < len(example[0].input_ids) <= room]
        limit = self.config.validation.batches
        prompts = prompts[: None if limit is None else limit * self.config.batch.size]
        # Passes of a model that is divided need all ranks: one that would have a prompt less answers another again, for nothing.
        counted, rounds = len(prompts[world.rank :: world.size]), -(-len(prompts) // world.size)
        prompts = (prompts * world.size)[: rounds * world.size][world.rank :: world.size]
        params = SamplingParams(max_tokens=self.config.rollout.max_tokens, temperature=0)
        found = self._sampler.answers([row.input_ids for _, row in prompts], [params] * len(prompts))
        pairs = [(prompt, answers[0]) for prompt, answers in zip(prompts, found, strict=True)]
        samples = [_sample(prompt, answer) for prompt, answer in pairs]
        answered = [self._answered(row, answer) for (_, row), answer in pairs]
        totals = self.judge(samples, answered)[0][:counted] if self.judges else []
        lengths = sum(sample.length for sample in samples[:counted])
        sums = world.sum(torch.tensor([sum(totals), lengths, counted], dtype=torch.float64))
        count = max(float(sums[2]), 1.0)
        figures = {"answer_tokens": float(sums[1]) / count}
        return {"reward": float(sums[0]) / count, **figures} if self.judges else figures

    def _seed(self, what: str, number: int) -> int:
        text = f"{self.config.seed} {self._rollout} {what} {number}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def _generator(self, what: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(what, number))


def _sample(prompt: Prompt, answer: Answer) -> Sample:
    key, row = prompt
    return Sample([*row.input_ids, *answer.ids], len(row.input_ids), key, answer.finished)


def _check(config: RolloutConfig, ranks: int) -> None:
    """Raise ConfigError for numbers that do not divide into ranks, batches and steps."""
    rollout, batch = config.rollout, config.batch
    if rollout.prompts % ranks:
        raise ConfigError(
            f"rollout.prompts is {rollout.prompts}, which {ranks} processes cannot share evenly",
            fix=f"use a multiple of {ranks}",
        )
    answers, step = rollout.prompts // ranks * rollout.answers, batch.size * batch.accumulate
    if answers % step:
        raise ConfigError(
            f"a rollout has {answers} answers (rollout.prompts x rollout.answers, per process), and a step takes {step} "
            "(batch.size x batch.accumulate): they do not divide",
            fix="change one of the four so that steps use up each rollout",
        )
