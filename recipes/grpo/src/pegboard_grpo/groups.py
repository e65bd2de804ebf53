"""Rollouts in groups: what an answer is worth beside the others to its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard_grpo.losses import EPSILON, group_advantages, group_deviations
from pegboard_grpo.objective import GroupRelative
from pegboard_rollouts.samples import Sample
from pegboard_rollouts.source import RolloutSource
from pegboard_trainer.setting import Setting


class GroupSource(RolloutSource):
    """Gives each answer its advantage over its group, and its tokens the reference's log-probabilities where they are needed."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not self.judges:
            raise ConfigError("there is no reward", fix="name at least one: rewards=[gsm8k], say")
        self._options = options = cast(GroupRelative, setting.objective).options
        rollout = self.config.rollout
        if rollout.answers < 2:
            raise ConfigError(
                f"rollout.answers is {rollout.answers}: an answer alone is as good as its group", fix="sample 2 or more"
            )
        for name in ("temperature", "max_tokens"):
            if getattr(options, name) != getattr(rollout, name):
                raise ConfigError(
                    f"objective.{name} is {getattr(options, name)}, rollout.{name} is {getattr(rollout, name)}",
                    fix=f"set objective.{name}=${{rollout.{name}}}",
                )

    def study(self, samples: Sequence[Sample]) -> None:
        """Set `advantage`, `learned` and, where the loss has a divergence, `reference_logps`."""
        rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
        rewards = rewards.view(-1, self.config.rollout.answers)
        deviations = group_deviations(rewards)
        advantages = group_advantages(rewards) / self._divisor(rewards, deviations)
        for sample, advantage in zip(samples, advantages.flatten().tolist(), strict=True):
            sample.extras["advantage"] = advantage
            sample.learned = sample.finished or self._options.learn_cut
        self.note("reward_deviation", float(deviations.sum()), len(rewards))
        self.note("equal_groups", float((deviations == 0).sum()), len(rewards))
        if self._options.beta:
            for sample, logps in zip(samples, self.logps("reference", samples), strict=True):
                sample.numbers["reference_logps"] = logps

    def _divisor(self, rewards: Tensor, deviations: Tensor) -> Tensor | float:
        """Return what differences are divided by. "batch": the deviation of all rewards of the rollout, over all ranks."""
        if self._options.scale == "none":
            return 1.0
        if self._options.scale == "group":
            return deviations + EPSILON
        world = self.setting.world
        count, total = world.sum(torch.tensor([rewards.numel(), float(rewards.sum())], dtype=torch.float64)).tolist()
        squares = world.sum(((rewards - total / count) ** 2).sum().reshape(1))
        return float((squares / (count - 1)).sqrt()) + EPSILON


def make(setting: Setting) -> GroupSource:
    """Return the batches of a run."""
    return GroupSource(setting)
