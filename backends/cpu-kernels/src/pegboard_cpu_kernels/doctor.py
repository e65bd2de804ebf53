"""A line for `peg doctor`."""

from __future__ import annotations

from pegboard.interfaces.hooks import Hooks
from pegboard.plugins.hooks import hookimpl
from pegboard_cpu_kernels.library import find


class KernelsDoctor(Hooks):
    """Says which instructions the compiled kernels use here, or why there are none."""

    @hookimpl
    def doctor(self) -> list[str]:
        found = find()
        if found.library is None:
            return [f"compiled CPU kernels: none, torch computes instead: {found.reason}"]
        return [f"compiled CPU kernels: {found.reason}"]
