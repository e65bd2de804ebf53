from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pegboard_sdk.conformance import LoggerSuite
from pegboard_tensorboard.plugin import SPEC


class TestTensorBoard(LoggerSuite):
    """What TensorBoard's own reader finds."""

    spec = SPEC

    def read(self, folder: Path) -> list[tuple[int, dict[str, float]]]:
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        steps: dict[int, dict[str, float]] = {}
        for tag in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(tag):
                assert tag not in steps.setdefault(event.step, {}), f"{tag} of step {event.step} stands there twice"
                steps[event.step][tag] = event.value
        return sorted(steps.items())
