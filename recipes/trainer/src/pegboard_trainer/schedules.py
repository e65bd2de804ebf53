"""Learning-rate schedules: pure functions of step and total."""

from __future__ import annotations

import math

from pegboard.interfaces.schedule import Schedule
from pegboard_trainer.options import ConstantOptions, DecayOptions, WsdOptions


def steps_of(value: float, total: int) -> int:
    """Return a number of steps: `value` itself, or below 1 that share of `total`."""
    return round(value * total) if value < 1 else int(value)


class Constant(Schedule):
    """1 after the warm-up."""

    def __init__(self, options: ConstantOptions) -> None:
        self._options = options

    def factor(self, step: int, total: int) -> float:
        """Rise from 1 / warmup at step 0 to 1 at step warmup - 1; then `after`."""
        warmup = steps_of(self._options.warmup, total)
        if step < warmup:
            return (step + 1) / warmup
        return self.after(min(step - warmup, total - warmup), max(total - warmup, 1))

    def after(self, step: int, total: int) -> float:
        """Return the factor for `step` of the `total` steps that follow the warm-up."""
        return 1.0


class Linear(Constant):
    """From 1 down to `minimum` on a line."""

    def __init__(self, options: DecayOptions) -> None:
        super().__init__(options)
        self._minimum = options.minimum

    def after(self, step: int, total: int) -> float:
        """1 - (1 - minimum) · step / total."""
        return 1 - (1 - self._minimum) * step / total


class Cosine(Constant):
    """From 1 down to `minimum` along half a cosine (arXiv:1608.03983, without restarts)."""

    def __init__(self, options: DecayOptions) -> None:
        super().__init__(options)
        self._minimum = options.minimum

    def after(self, step: int, total: int) -> float:
        """Minimum + (1 - minimum) · (1 + cos(π step / total)) / 2."""
        return self._minimum + (1 - self._minimum) * (1 + math.cos(math.pi * step / total)) / 2


class WarmupStableDecay(Constant):
    """1 until the last `decay` steps, then down to `minimum` on a line."""

    def __init__(self, options: WsdOptions) -> None:
        super().__init__(options)
        self._wsd = options

    def factor(self, step: int, total: int) -> float:
        """As `Constant`, times the decay of the last steps."""
        decay = steps_of(self._wsd.decay, total)
        left = max(total - step, 0)
        falling = 1.0 if left >= decay else self._wsd.minimum + (1 - self._wsd.minimum) * left / decay
        return super().factor(step, total) * falling
