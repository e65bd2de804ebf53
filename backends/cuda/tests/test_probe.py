from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pegboard_cuda.probe import probe


class Driver:
    """The driver's library, answering as told."""

    def __init__(self, init: int = 0, count: int = 1, counting: int = 0) -> None:
        self._init, self._count, self._counting = init, count, counting

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDeviceGetCount(self, where: Any) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = self._count
        return self._counting


def absent(name: str) -> Any:
    raise OSError(name)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(metadata, "version", lambda name: "2.11.0+cu130")


@pytest.mark.parametrize(
    ("load", "node", "present", "usable", "reason"),
    [
        (absent, False, False, False, "no NVIDIA driver"),
        (absent, True, True, False, "/dev/nvidia0 is there but"),
        (lambda name: Driver(), True, True, True, "1 device"),
        (lambda name: Driver(count=3), False, True, True, "3 devices"),
        (lambda name: Driver(count=0), False, False, False, "no device"),
        (lambda name: Driver(init=100), False, False, False, "no device"),
        (lambda name: Driver(init=999), True, True, False, "cuInit gives 999"),
        (lambda name: Driver(counting=3), True, True, False, "cuDeviceGetCount gives 3"),
    ],
)
def test_verdicts(
    tmp_path: Path, load: Callable[[str], Any], node: bool, present: bool, usable: bool, reason: str
) -> None:
    (tmp_path / "dev").mkdir()
    if node:
        (tmp_path / "dev/nvidia0").touch()
    found = probe(tmp_path, load)
    assert (found.present, found.usable) == (present, usable)
    assert reason in found.reason


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_devices(monkeypatch: pytest.MonkeyPatch, value: str, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = probe(tmp_path, lambda name: Driver())
    assert not found.present and "CUDA_VISIBLE_DEVICES" in found.reason


def test_a_torch_without_cuda_is_broken_not_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    found = probe(tmp_path, lambda name: Driver())
    assert found.present and not found.usable and "2.13.0+cpu" in found.reason
