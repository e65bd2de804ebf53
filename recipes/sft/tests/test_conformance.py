from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pegboard.reference import cross_entropy_sum
from pegboard.types import Batch
from pegboard_sdk.conformance import ObjectiveSuite
from pegboard_sdk.toys.roles import ToyRole
from pegboard_sft.plugin import OBJECTIVE


class TestSupervised(ObjectiveSuite):
    spec = OBJECTIVE
    single_pass = True

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        policy = roles["policy"]
        return cross_entropy_sum(policy.hidden(batch), policy.head.matrix, batch.targets, batch.target_rows)
