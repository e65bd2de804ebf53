"""Kernels that are put on the device while the one in front of them still runs, where devices can do that (compute capability 9 and on).

Such a kernel waits, by `gdc_wait`, before it reads what the one in front of it wrote; what it needs to know of the batch is older. It
lets the next one come, by `gdc_launch_dependents`, only after it has waited itself: so that whatever is two kernels back has ended.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # a Triton that was built for other GPUs alone
    gdc_launch_dependents = gdc_wait = None

__all__ = ["early", "gdc_launch_dependents", "gdc_wait"]


@cache
def early(device: torch.device) -> dict[str, Any]:
    """Return the constant and the option with which such kernels are launched on a device."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (9, 0):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}
