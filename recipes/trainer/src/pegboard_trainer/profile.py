"""Looking closely at some steps: a trace of what was computed, and where memory went."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pegboard_trainer.callbacks import Callback
from pegboard_trainer.config import ProfileSection


class Profile(Callback):
    """Records steps as a trace in Chrome's format, and the device's memory behind them, into `profile/` of the run.

    The config's `profile` says which; SIGUSR1 asks for more from the next step on. On devices whose allocator tells, its blocks are
    written as JSON.
    """

    def __init__(self, folder: Path, device: torch.device, rank: int, section: ProfileSection) -> None:
        self._folder, self._device, self._rank = folder / "profile", device, rank
        self._next, self._count, self._memory = section.first, section.steps, section.memory
        self._asked = False
        self._last = 0
        self._profile: Any = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def before_step(self, step: int) -> None:
        """Begin to record, if it is time."""
        if self._profile is None and (self._asked or step == self._next):
            self._asked, self._last = False, step + self._count - 1
            activities = [ProfilerActivity.CPU]
            if self._device.type != "cpu":
                activities += [a for a in ProfilerActivity.__members__.values() if a.name == self._device.type.upper()]
            self._profile = profile(activities=activities, record_shapes=True, profile_memory=self._memory)
            self._profile.start()

    def after_step(self, step: int) -> None:
        """Write what was recorded after the last step of it."""
        if self._profile is None or step < self._last:
            return
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"step-{step:08d}-rank-{self._rank}"
        self._profile.export_chrome_trace(str(self._folder / f"{name}.trace.json"))
        self._profile = None
        if self._memory:
            blocks: Any = []
            with suppress(Exception):  # the host, and devices whose allocator does not tell
                blocks = torch.get_device_module(self._device).memory_snapshot()
            (self._folder / f"{name}.memory.json").write_text(json.dumps(blocks, default=str))
