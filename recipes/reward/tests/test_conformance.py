from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pegboard.nn import Head
from pegboard.types import Batch
from pegboard_reward.plugin import OBJECTIVE
from pegboard_sdk.conformance import ObjectiveSuite
from pegboard_sdk.toys.roles import HIDDEN, VOCABULARY, ToyRole, pack


class ScalarRole(ToyRole):
    """A toy whose head gives one score."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        weight = self._head.weight.detach()[:1].clone()
        self._head = Head(HIDDEN, 1)
        self._head.weight = nn.Parameter(weight, requires_grad=options.get("trained", True))


class TestBradleyTerry(ObjectiveSuite):
    spec = OBJECTIVE
    roles = ("reward",)
    options: ClassVar[Mapping[str, Any]] = {"center": 0.05}

    def models(
        self, *, device: str = "cpu", dtype: torch.dtype = torch.float64, scale: float = 1.0
    ) -> dict[str, ToyRole]:
        return {"reward": ScalarRole(seed=1, device=device, dtype=dtype, scale=scale)}

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        ids = [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in (7, 2, 9, 4)]
        batch = pack([(tokens, [learned] * len(tokens)) for tokens in ids])
        pairs = [[0, 3], [1, 2]] if learned else [[], []]
        batch.parts = dict(zip(("chosen", "rejected"), torch.tensor(pairs, dtype=torch.int64), strict=True))
        batch.extras["margin"] = torch.tensor([0.5, 0.5, float("nan"), float("nan")])
        return batch

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        role, total = roles["reward"], torch.zeros((), dtype=torch.float64)
        ends = [sum(batch.seq_lens[: i + 1]) - 1 for i in range(4)]
        scores = [(role.hidden(batch)[end] * role.head.matrix[0]).sum() for end in ends]
        for i, j, margin in ((0, 1, 0.5), (3, 2, 0.0)):
            odds = (scores[i] - scores[j] - margin).exp()
            total = total - (odds / (1 + odds)).log() + 0.05 * (scores[i] + scores[j]) ** 2
        return total
