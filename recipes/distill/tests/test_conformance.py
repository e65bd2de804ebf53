from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pegboard.types import Batch
from pegboard_distill.plugin import OBJECTIVE
from pegboard_sdk.conformance import ObjectiveSuite
from pegboard_sdk.toys.roles import ToyRole


def distributions(role: ToyRole, batch: Batch, temperature: float) -> Tensor:
    logits = role.hidden(batch) @ role.head.matrix.t()
    return (logits[batch.target_rows] / temperature).softmax(-1)


class TestForward(ObjectiveSuite):
    spec = OBJECTIVE
    single_pass = True
    roles = ("policy", "teacher")
    options: ClassVar[Mapping[str, Any]] = {"temperature": 2.0, "weight": 0.25}

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        p, q = (distributions(roles[name], batch, 2.0) for name in ("teacher", "policy"))
        right = distributions(roles["policy"], batch, 1.0).gather(1, batch.targets[batch.target_rows, None])
        return 0.25 * 4 * (p * (p / q).log()).sum() - 0.75 * right.log().sum()


class TestReverse(ObjectiveSuite):
    spec = OBJECTIVE
    single_pass = True
    roles = ("policy", "teacher")
    options: ClassVar[Mapping[str, Any]] = {"divergence": "reverse_kl"}

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        p, q = (distributions(roles[name], batch, 1.0) for name in ("teacher", "policy"))
        return (q * (q / p).log()).sum()


class TestTopK(ObjectiveSuite):
    spec = OBJECTIVE
    single_pass = True
    roles = ("policy", "teacher")
    options: ClassVar[Mapping[str, Any]] = {"divergence": "js", "beta": 0.3, "top_k": 2}

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        p, q = (distributions(roles[name], batch, 1.0) for name in ("teacher", "policy"))
        for one, other in zip(p, q, strict=True):
            ids = one.argsort(descending=True)
            events = [ids[:1], ids[1:2], ids[2:]]
            for a, b in ((one[event].sum(), other[event].sum()) for event in events):
                m = 0.3 * a + 0.7 * b
                total = total + 0.3 * a * (a / m).log() + 0.7 * b * (b / m).log()
        return total
