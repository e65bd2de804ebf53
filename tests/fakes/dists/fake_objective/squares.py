"""A loss that no language model is trained with: squared distance of each target's probability from one."""

import torch

from pegboard.interfaces.objective import Objective
from pegboard.nn.loss import token_logps
from pegboard.types import LossOutput


class Squares(Objective):
    """Sum of (1 - p) ** 2 over the targets."""

    def denominator(self, batch):
        return torch.tensor(float(len(batch.target_rows)), dtype=torch.float64, device=batch.targets.device)

    def __call__(self, roles, batch):
        policy = roles["policy"]
        p = token_logps(policy.hidden(batch), policy.head, batch.targets, batch.target_rows).exp()
        return LossOutput(((1 - p) ** 2).sum(), {"probability": (p.sum(), len(p))})
