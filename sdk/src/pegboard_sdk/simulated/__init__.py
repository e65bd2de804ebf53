"""A device that computes on the host and counts what it is given: what a step costs, told without an accelerator.

`SimulatedDevice` is of torch's abstract type `lazy`. What is on it has its own tensors; as on a real device, nothing on the host can be
mixed with them, numbers are read by waiting, and what is on its way to the host is not there yet.
"""

from pegboard_sdk.simulated.counted import Counted
from pegboard_sdk.simulated.device import SimulatedDevice, SimulatedGraph
from pegboard_sdk.simulated.platform import SimulatedPlatform

__all__ = ["Counted", "SimulatedDevice", "SimulatedGraph", "SimulatedPlatform"]
