"""What every test starts from: the same numbers, whatever ran before it, and as much time as the machine needs."""

from __future__ import annotations

import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

SEED = 20_260

# The same examples everywhere and always: what fails in one place fails in all. `--hypothesis-profile=explore` looks for new ones.
_unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_unhurried)
settings.register_profile("explore", **_unhurried)
settings.load_profile("same")

# A shell without job control starts what is behind `&` with interrupts ignored, which children would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _seed() -> None:
    """Set the generator that tensors are drawn from without one; torch is not imported for those who do without it."""
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed()
