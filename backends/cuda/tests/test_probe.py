from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard_cuda.probe import capabilities, library, probe


class Driver:
    """The driver's library, answering as told."""

    def __init__(self, init: int = 0, count: int = 1, counting: int = 0, newest: int = 13000) -> None:
        self._init, self._count, self._counting, self._newest = init, count, counting, newest

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDriverGetVersion(self, where: Any) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = self._newest
        return 0

    def cuDeviceGetCount(self, where: Any) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = self._count
        return self._counting


def absent(name: str) -> Any:
    raise OSError(name)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, torch_built: Callable[..., None]) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torch_built("2.11.0", cuda="13.0")


@pytest.mark.parametrize(
    ("load", "node", "present", "usable", "reason"),
    [
        (absent, False, False, False, "no NVIDIA driver"),
        (absent, True, True, False, "/dev/nvidia0 is there but"),
        (lambda name: Driver(), True, True, True, "1 device"),
        (lambda name: Driver(count=3), False, True, True, "3 devices"),
        (lambda name: Driver(count=0), False, False, False, "no device"),
        (lambda name: Driver(init=100), False, False, False, "no device"),
        (
            lambda name: Driver(init=100),
            True,
            True,
            False,
            "/dev/nvidia0 is there but the NVIDIA driver shows no device",
        ),
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


@pytest.mark.parametrize("value", ["", "-1", "-1,0", "NoDevFiles", "none"])
def test_hidden_devices(monkeypatch: pytest.MonkeyPatch, value: str, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = probe(tmp_path, lambda name: Driver())
    assert not found.present and "CUDA_VISIBLE_DEVICES" in found.reason


GPU = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-41b35915-fbb0-5a36-9d61-4d29b5a8c1fa"


def machine(root: Path) -> Path:
    """The files of a machine with one H100 in MIG mode."""
    (root / "dev").mkdir()
    (root / "dev/nvidia0").touch()
    folder = root / "proc/driver/nvidia/gpus/0000:4e:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 412\nGPU UUID: \t {GPU}\n")
    return root


@pytest.mark.parametrize("value", ["0", "GPU-8932f937", GPU, MIG, "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"])
def test_the_driver_reads_numbers_and_ids(monkeypatch: pytest.MonkeyPatch, value: str, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = probe(machine(tmp_path), lambda name: Driver())
    assert found.usable and found.reason == "1 device"


@pytest.mark.parametrize("value", ["1", "GPU-0000", MIG])
def test_a_name_of_no_device_is_a_mistake(monkeypatch: pytest.MonkeyPatch, value: str, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = probe(machine(tmp_path), lambda name: Driver(init=100))
    assert found.present and not found.usable
    assert found.reason == f"CUDA_VISIBLE_DEVICES={value!r} names none of the NVIDIA GPUs that are here ({GPU})"


def test_a_gpu_in_mig_mode_without_instances(tmp_path: Path) -> None:
    found = probe(machine(tmp_path), lambda name: Driver(count=0))
    assert found.present and not found.usable and "MIG mode without an instance" in found.reason


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.0"])
def test_a_torch_without_cuda_is_broken_not_absent(
    torch_built: Callable[..., None], version: str, tmp_path: Path
) -> None:
    torch_built(version)
    found = probe(tmp_path, lambda name: Driver())
    assert found.present and not found.usable and f"torch {version} is built without CUDA" in found.reason


@pytest.mark.parametrize(
    ("newest", "toolkit", "usable"),
    [(13000, "13.0", True), (13020, "12.8", True), (12040, "12.8", True), (12040, "13.0", False)],
)
def test_drivers_and_toolkits(
    torch_built: Callable[..., None], newest: int, toolkit: str, usable: bool, tmp_path: Path
) -> None:
    torch_built("2.12.0", cuda=toolkit)
    found = probe(tmp_path, lambda name: Driver(newest=newest))
    assert found.present and found.usable is usable
    assert usable or "the driver runs CUDA up to 12.4 and torch 2.12.0 is built with 13.0" in found.reason


@pytest.mark.parametrize("kind", ["hip", "xpu"])
def test_a_torch_for_another_gpu(torch_built: Callable[..., None], kind: str, tmp_path: Path) -> None:
    """Where that other GPU is here, ours is not what this torch is for; where it is not, the wrong torch is installed."""
    torch_built("2.12.0", **{kind: "7"})
    alone = probe(tmp_path, lambda name: Driver())
    assert alone.present and not alone.usable
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    device = tmp_path / "sys/class/drm/renderD128/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x8086\n")
    beside = probe(tmp_path, lambda name: Driver())
    assert not beside.present and "built for the other GPU that is here" in beside.reason


class Cards(Driver):
    """A driver with cards of these compute capabilities."""

    def __init__(self, *cards: tuple[int, int], **told: int) -> None:
        super().__init__(count=len(cards), **told)
        self._cards = cards

    def cuDeviceGetAttribute(self, where: Any, attribute: int, device: int) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = self._cards[device][attribute - 75]
        return 0


def test_compute_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    assert capabilities(lambda name: Cards((9, 0), (8, 6))) == [(9, 0), (8, 6)]
    assert capabilities(lambda name: Cards()) == []
    assert capabilities(lambda name: Cards((9, 0), init=100)) == []
    assert capabilities(lambda name: Cards((9, 0), counting=3)) == []
    assert capabilities(absent) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert capabilities(lambda name: Cards((9, 0))) == []


def test_a_library_of_kernels() -> None:
    """Pytest stands for one here: it is installed everywhere that this runs."""
    found = library("pytest", "pip install pytest", (9, 10), lambda name: Cards((8, 6), (9, 0)))
    assert found.usable and found.reason == f"pytest {pytest.__version__}"
    old = library("pytest", "", (9, 10), lambda name: Cards((8, 6)))
    assert not old.present and old.reason.endswith("computes on GPUs of compute capability 9.x or 10.x, here is 8.6")
    none = library("pytest", "", (9,), absent)
    assert not none.present and none.reason.endswith("computes on NVIDIA GPUs, and none is here")
    missing = library("no-such-kernels", "pip install them", (9,), lambda name: Cards((9, 0)))
    assert (missing.present, missing.reason) == (False, "no-such-kernels is not installed (pip install them)")
