"""Events of a simulated device, and its module among torch's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pegboard_sdk.simulated.device import SimulatedDevice


class SimulatedEvent:
    """A place in what a device was given. Waiting for it is counted, with how much was given behind it."""

    def __init__(self, owner: SimulatedDevice) -> None:
        self._owner = owner
        self._given: int | None = None
        self._arriving = 0

    def record(self, stream: object = None) -> None:
        """Put it behind all that was given so far."""
        self._given, self._arriving = self._owner.given, self._owner.arriving

    def synchronize(self) -> None:
        """Wait for it. Raises RuntimeError when it was never recorded: nothing would have been waited for."""
        if self._given is None:
            raise RuntimeError("an event was waited for before it was recorded")
        self._owner.arrive(self._arriving)
        self._owner.wait("event", behind=self._owner.given - self._given)

    def query(self) -> bool:
        """Return whether it is over, which it is when somebody has waited for it or for what came after."""
        return self._given is not None and self._owner.arrived >= self._arriving

    def wait(self, stream: object = None) -> None:
        """Let a stream wait, on the device."""


def event_class(owner: SimulatedDevice, real: Any) -> Any:
    """Return what stands for `torch.Event`: it makes events of the simulated device, and torch's own ones for others."""

    class Event(real):  # type: ignore[misc]
        def __new__(cls, device: Any = None, **options: Any) -> Any:
            if device is not None and torch.device(device).type == owner.device.type:
                return SimulatedEvent(owner)
            return real(**options) if device is None else real(device, **options)

    return Event


class SimulatedModule:
    """What `torch.get_device_module` returns for the device."""

    def __init__(self, owner: SimulatedDevice) -> None:
        self._owner = owner

    def device(self, device: Any) -> AbstractContextManager[None]:
        """Make a device the current one, which the only one always is."""
        return nullcontext()

    def synchronize(self, device: Any = None) -> None:
        """Wait for all that was given."""
        self._owner.arrive(self._owner.arriving)
        self._owner.wait("synchronize")

    def is_current_stream_capturing(self) -> bool:
        """Return whether work is being captured."""
        return self._owner.captures

    def device_count(self) -> int:
        """Return one."""
        return 1

    def current_device(self) -> int:
        """Return its index."""
        return 0

    def get_device_name(self, device: Any = None) -> str:
        """Return a name that no card has."""
        return "simulated"

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        """Return the few that launches depend on."""
        return SimpleNamespace(multi_processor_count=8)
