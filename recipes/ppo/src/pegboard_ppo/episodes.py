"""Rollouts as episodes: a reward for each token, and how much more it was than expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pegboard.errors import ConfigError
from pegboard.interfaces.objective import Role
from pegboard.interfaces.reward import Answered
from pegboard.types import Batch
from pegboard_ppo.estimates import generalised_advantages, steered, whiten
from pegboard_ppo.objective import Proximal, answer_values
from pegboard_reward.objective import sequence_scores
from pegboard_rollouts.samples import Sample
from pegboard_rollouts.scoring import by_sample
from pegboard_rollouts.source import RolloutSource
from pegboard_trainer.setting import Setting


class EpisodeSource(RolloutSource):
    """Gives each token of an answer its advantage and its return.

    A token's reward is the weighted divergence from the reference, less than nothing; the last one's also what the answer is worth.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not self.judges:
            raise ConfigError("there is no reward", fix="name a model, reward=PATH, or rewards=[gsm8k], say")
        self._options = options = cast(Proximal, setting.objective).options
        if options.temperature != self.config.rollout.temperature:
            raise ConfigError(
                f"objective.temperature is {options.temperature}, rollout.temperature is {self.config.rollout.temperature}",
                fix="set objective.temperature=${rollout.temperature}",
            )
        self._weight = options.kl

    @property
    def judges(self) -> bool:
        """Whether there are rewards or a reward model."""
        return super().judges or "reward" in self.setting.roles

    def judge(
        self, samples: Sequence[Sample], answered: Sequence[Answered]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """Return the weighted sum of the rewards, and the reward model's score beside it."""
        totals, parts = super().judge(samples, answered)
        if "reward" in self.setting.roles:
            parts["model"] = [float(scores[-1]) for scores in self._by_sample("reward", samples, _scores)]
            totals = [total + score for total, score in zip(totals, parts["model"], strict=True)]
        return totals, parts

    def study(self, samples: Sequence[Sample]) -> None:
        """Set `old_values`, `advantages` and `returns`, and steer the weight of the divergence."""
        options, world = self._options, self.setting.world
        values = self._by_sample("value", samples, answer_values)
        divergences, weight = self._divergences(samples), self._weight
        self._steer(divergences)
        rewards = [-weight * divergence for divergence in divergences]
        for sample, gains in zip(samples, rewards, strict=True):
            gains[-1] += sample.reward - (0.0 if sample.finished else options.cut_penalty)
        lengths = [sample.length for sample in samples]
        if options.whiten_rewards:
            rewards = list(whiten(torch.cat(rewards), world.sum, centre=False).split(lengths))
        expected = [value.double() for value in values]
        padded = generalised_advantages(
            pad_sequence(rewards, batch_first=True),
            pad_sequence(expected, batch_first=True),
            options.gamma,
            options.lam,
        )
        advantages = [row[:length] for row, length in zip(padded, lengths, strict=True)]
        returns = [gain + value for gain, value in zip(advantages, expected, strict=True)]
        if options.whiten:
            advantages = list(whiten(torch.cat(advantages), world.sum).split(lengths))
        for sample, value, gain, back in zip(samples, values, advantages, returns, strict=True):
            sample.numbers |= {"old_values": value, "advantages": gain.float(), "returns": back.float()}
            self.note("return", float(back[0]), 1)
            self.note("value", float(value[0]), 1)

    def state(self) -> dict[str, Any]:
        """Return the position and the weight of the divergence."""
        return {**super().state(), "kl_weight": self._weight}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue inside a rollout."""
        super().restore(state, tensors)
        self._weight = state["kl_weight"]

    def _divergences(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Return the estimated divergence of each token from the reference, [length] float64 each."""
        if not self._options.kl:
            return [torch.zeros(sample.length, dtype=torch.float64) for sample in samples]
        found = []
        for sample, reference in zip(samples, self.logps("reference", samples), strict=True):
            away = reference.double() - sample.numbers["old_logps"].double()
            found.append(-away if self._options.estimator == "k1" else away.exp() - 1 - away)
        return found

    def _steer(self, divergences: Sequence[Tensor]) -> None:
        """Choose the weight of the next rollout by the divergence of this one's answers, over all ranks."""
        options = self._options
        if not options.kl:
            return
        total, count = sum(float(tokens.sum()) for tokens in divergences), len(divergences)
        self.note("kl", total, count)
        self.note("kl_weight", self._weight, 1)
        if options.kl_target is not None:
            sums = self.setting.world.sum(torch.tensor([total, count], dtype=torch.float64)).tolist()
            self._weight = steered(self._weight, sums[0] / sums[1], options.kl_target, int(sums[1]), options.kl_horizon)

    def _by_sample(self, role: str, samples: Sequence[Sample], compute: Any) -> list[Tensor]:
        size, device = self.config.batch.size, self.setting.device
        return by_sample(samples, self.setting.roles[role], compute, size, device)


def _scores(role: Role, batch: Batch) -> Tensor:
    """Return the score of its sequence for each token that counts, [M]."""
    return sequence_scores(role, batch).index_select(0, batch.sequence_ids.index_select(0, batch.target_rows))


def make(setting: Setting) -> EpisodeSource:
    """Return the batches of a run."""
    return EpisodeSource(setting)
