from __future__ import annotations

from collections.abc import Sequence

import torch

from pegboard_cpu.plugin import SPEC
from pegboard_sdk.conformance import PlatformSuite
from pegboard_sdk.conformance.op_samples import Draw, Sample


class TestCpu(PlatformSuite):
    spec = SPEC

    def samples(self, op: str, draw: Draw) -> Sequence[Sample]:
        """The compiled kernels also compute an op of pegboard-int8, which is registered where that is imported."""
        if op == "int8_linear":
            weight, scales = torch.arange(-24, 24, dtype=torch.int8).view(6, 8), torch.linspace(0.01, 0.02, 6)
            return [(draw.tensor(rows, 8), weight, scales, bias) for rows in (1, 5) for bias in (None, draw.tensor(6))]
        return super().samples(op, draw)
