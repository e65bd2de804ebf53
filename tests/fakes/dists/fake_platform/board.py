"""Hardware that is the host in disguise. It replaces one op and counts how often that was called."""

import torch

from pegboard.errors import DeviceError
from pegboard.interfaces.platform import DeviceInfo, Platform

CALLS = {"silu_mul": 0, "configure": 0}


def silu_mul(gate_up):
    """[T, 2 I] -> [T, I], written out."""
    CALLS["silu_mul"] += 1
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half], gate_up[..., half:]
    return gate / (1 + torch.exp(-gate)) * up


class Board(Platform):
    """Two devices that are one, in float64."""

    def devices(self):
        return [DeviceInfo(index, f"cork {index}", 1 << 30, 1 << 29) for index in range(2)]

    def device(self, index=0):
        if index not in (0, 1):
            raise DeviceError(f"there is no cork device {index}", fix="use 0 or 1")
        return torch.device("cpu")

    def capabilities(self, index=0):
        return frozenset()

    def default_dtype(self, index=0):
        return torch.float64

    def attention_preference(self, phase, spec):
        return ("fast-on-cork", "loops")

    def kernels(self, phase, dtype, index=0):
        return {"silu_mul": silu_mul}

    def configure(self, *, threads=None):
        CALLS["configure"] += 1

    def synchronize(self, index=0):
        """The host is never behind."""
