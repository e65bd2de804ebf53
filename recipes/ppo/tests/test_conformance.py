from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError
from pegboard.nn import Head
from pegboard.types import Batch
from pegboard_ppo.plugin import OBJECTIVE
from pegboard_sdk.conformance import ObjectiveSuite
from pegboard_sdk.toys.roles import HIDDEN, VOCABULARY, ToyRole, pack

NAMES = ("old_logps", "advantages", "old_values", "returns")


class ToyValue(ToyRole):
    """A toy with one number a token."""

    def __init__(self, **options: Any) -> None:
        super().__init__(seed=40, **options)
        table = self._head.weight
        self._head = Head(HIDDEN, 1)
        self._head.weight = nn.Parameter(table.detach()[:1].clone(), requires_grad=table.requires_grad)


class TestProximal(ObjectiveSuite):
    """The policy's gradients; those of the value have a test of their own."""

    spec = OBJECTIVE
    single_pass = True
    options: ClassVar[Mapping[str, Any]] = {"clip": 0.3, "value_clip": 0.5, "value_weight": 0.7, "temperature": 1.4}

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        lengths = (7, 4, 9)
        ids = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        batch = pack([(tokens, [learned and i > len(tokens) // 3 for i in range(len(tokens))]) for tokens in ids])
        for name in NAMES:
            values = torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
            batch.extras[name] = values - 3 if name == "old_logps" else values
        return batch

    def models(
        self, *, device: str = "cpu", dtype: torch.dtype = torch.float64, scale: float = 1.0
    ) -> dict[str, ToyRole]:
        value = ToyValue(device=device, dtype=dtype, scale=scale)
        return {**super().models(device=device, dtype=dtype, scale=scale), "value": value}

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        """Token by token, from the whole table of probabilities."""
        table = (roles["policy"].hidden(batch) @ roles["policy"].head.matrix.t() / 1.4).softmax(-1).log()
        values = roles["value"].hidden(batch) @ roles["value"].head.matrix.t()
        total = torch.zeros((), dtype=torch.float64)
        for t in batch.target_rows.tolist():
            old, advantage, before, back = (batch.extras[name][t] for name in NAMES)
            ratio = (table[t, batch.targets[t]] - old).exp()
            total = total + torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.7, 1.3))
            value = values[t, 0]
            held = torch.minimum(torch.maximum(value, before - 0.5), before + 0.5)
            total = total + 0.7 * 0.5 * torch.maximum((value - back) ** 2, (held - back) ** 2)
        return total


def test_gradients_of_the_value() -> None:
    suite = TestProximal()
    models, batch = suite.models(), suite.batch(5)
    parameters = models["value"].parameters()
    mine = torch.autograd.grad(suite.loss(models, batch).sum, parameters)
    right = torch.autograd.grad(suite.expected(models, batch), parameters)
    for found, wanted in zip(mine, right, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_divergence_needs_a_reference() -> None:
    suite = TestProximal()
    with pytest.raises(ConfigError, match="no reference"):
        suite.create(temperature=1.0).prepare(suite.models(), torch.device("cpu"))
    suite.create(kl=0.0).prepare(suite.models(), torch.device("cpu"))
