"""Which platform an automatic choice takes on made-up computers: the real probes of all platforms, over files and drivers of our own."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import PluginError
from pegboard.plugins.load import Registry
from pegboard_cuda import probe as cuda
from pegboard_rocm import probe as rocm
from pegboard_sdk.peg import Said
from pegboard_xpu import probe as xpu

CPU, CUDA, ROCM, XPU = {}, {"cuda": "13.0"}, {"hip": "7.2.1"}, {"xpu": "20260000"}  # type: ignore[var-annotated]
KFD = "sys/class/kfd/kfd/topology/nodes/1/properties"
AMD = {"dev/kfd": "", "dev/dri/renderD128": "", KFD: "simd_count 440\ngfx_target_version 90010\ndrm_render_minor 128\n"}
DRM = "sys/class/drm/renderD129/device"
INTEL = {
    "dev/dri/renderD129": "",
    f"{DRM}/vendor": "0x8086\n",
    f"{DRM}/device": "0x56a0\n",
    f"{DRM}/class": "0x030000\n",
    f"{DRM}/uevent": "DRIVER=i915\nPCI_SLOT_NAME=0000:03:00.0\n",
}
NVIDIA = {"dev/nvidia0": ""}
VARIABLES = (
    "CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ZE_AFFINITY_MASK ONEAPI_DEVICE_SELECTOR".split()
)
Computer = Callable[..., None]


class Drivers:
    """The libraries of the drivers that a computer has."""

    def __init__(self, nvidia: bool, level_zero: bool) -> None:
        self.there = {"libcuda.so.1": nvidia, "libze_loader.so.1": level_zero}

    def load(self, name: str) -> Any:
        if not self.there[name]:
            raise OSError(name)
        return self

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, where: Any) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = 1
        return 0

    def cuDriverGetVersion(self, where: Any) -> int:
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = 13000
        return 0

    def zeInit(self, flags: int) -> int:
        return 0


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_built: Callable[..., None]) -> Computer:
    """Return a function that makes this process's computer: its files, the build of its torch, and whether it has Level Zero."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def build(*files: dict[str, str], torch: dict[str, str], level_zero: bool = True) -> None:
        torch_built("2.12.0", **torch)
        there = {path: text for some in files for path, text in some.items()}
        for path, text in there.items():
            (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / path).write_text(text)
        root, drivers = tmp_path / "root", Drivers("dev/nvidia0" in there, level_zero)
        monkeypatch.setattr(cuda.probe, "__defaults__", (root, drivers.load))
        monkeypatch.setattr(rocm.probe, "__defaults__", (root, os.access))
        monkeypatch.setattr(xpu.probe, "__defaults__", (root, drivers.load, os.access))

    return build


@pytest.mark.parametrize(
    ("files", "torch", "chosen", "reasons"),
    [
        ((), CPU, "cpu", ["cuda absent (no NVIDIA driver)", "rocm absent (no AMD GPU", "xpu absent (no Intel GPU)"]),
        ((NVIDIA,), CUDA, "cuda", ["cuda chosen (1 device)"]),
        ((AMD,), ROCM, "rocm", ["rocm chosen (1 device (gfx90a", "cuda absent (no NVIDIA driver)"]),
        ((INTEL,), XPU, "xpu", ["xpu chosen (1 device (56a0))"]),
        # Two kinds of cards: the build of torch says which is meant.
        ((NVIDIA, AMD), CUDA, "cuda", ["rocm absent (1 device (gfx90a"]),
        ((NVIDIA, AMD), ROCM, "rocm", ["cuda absent (1 device, but torch 2.12.0 is built for the other GPU"]),
        ((NVIDIA, INTEL), CUDA, "cuda", ["xpu absent (1 device (56a0), but torch 2.12.0 is built for the other"]),
        ((NVIDIA, INTEL), XPU, "xpu", ["cuda absent (1 device, but torch 2.12.0 is built for the other"]),
        ((AMD, INTEL), ROCM, "rocm", ["xpu absent (1 device (56a0), but torch 2.12.0 is built for the other"]),
        ((AMD, INTEL), XPU, "xpu", ["rocm absent (1 device (gfx90a"]),
        ((NVIDIA, AMD, INTEL), CUDA, "cuda", ["rocm absent", "xpu absent"]),
    ],
)
def test_choices(
    computer: Computer,
    caplog: pytest.LogCaptureFixture,
    files: tuple[dict[str, str], ...],
    torch: dict[str, str],
    chosen: str,
    reasons: list[str],
) -> None:
    caplog.set_level(logging.INFO, "pegboard")
    computer(*files, torch=torch)
    assert Registry.discover().auto("platform").name == chosen
    (line,) = [record.message for record in caplog.records if record.message.startswith("platform: ")]
    assert line.startswith(f"platform: {chosen} chosen")
    assert all(reason in line for reason in reasons), line


@pytest.mark.parametrize(
    ("files", "torch", "broken", "reason"),
    [
        ((NVIDIA,), CPU, "cuda", "built without CUDA"),
        ((AMD,), CPU, "rocm", "built without HIP"),
        ((AMD,), CUDA, "rocm", "built without HIP"),
        ((INTEL,), CPU, "xpu", "built without XPU support"),
        ((NVIDIA, AMD, INTEL), CPU, "cuda", "built without CUDA"),
        ((AMD, INTEL), CPU, "rocm", "built without HIP"),
        ((AMD, INTEL), CUDA, "rocm", "built without HIP"),
    ],
)
def test_what_is_present_but_broken_stops(
    computer: Computer, files: tuple[dict[str, str], ...], torch: dict[str, str], broken: str, reason: str
) -> None:
    computer(*files, torch=torch)
    with pytest.raises(PluginError, match=f"platform '{broken}' is present but not usable: .*{reason}") as caught:
        Registry.discover().auto("platform")
    assert f"PEGBOARD_DISABLE_PLUGINS=pegboard-{broken}" in (caught.value.fix or "")
    others = ["pegboard-cuda", "pegboard-rocm", "pegboard-xpu"]
    assert Registry.discover(disabled=others).auto("platform").name == "cpu"


def test_a_broken_driver_stops_too(computer: Computer) -> None:
    computer(INTEL, torch=XPU, level_zero=False)
    with pytest.raises(PluginError, match=r"platform 'xpu' is present but not usable: .* cannot be loaded"):
        Registry.discover().auto("platform")


def test_all_hidden(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    computer(NVIDIA, AMD, INTEL, torch=CUDA)
    for name in VARIABLES[:4]:
        monkeypatch.setenv(name, "-1")
    choice = Registry.discover().auto("platform")
    assert choice.name == "cpu" and choice.host
    assert all(f"hidden by {name}='-1'" in choice.line for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"))


def test_what_a_user_sees(computer: Computer, toy_model: Path, peg: Callable[..., Said]) -> None:
    """The CPU with one line where there is nothing else; a stop with the reason where something is broken."""
    ask = ("generate", str(toy_model), "hello", "--max-tokens", "2", "--temperature", "0")
    computer(torch=CPU)
    plain = peg(*ask)
    assert plain.status == 0
    assert [line for line in plain.err.splitlines() if "cpu chosen" in line and "rocm absent (no AMD GPU" in line]
    computer(AMD, torch=CUDA)
    broken = peg(*ask)
    assert broken.status == 2 and "built without HIP: install a ROCm build of torch" in broken.err
    assert "Traceback" not in broken.err
    named = peg(*ask, "--platform", "cpu")
    assert named.status == 0 and named.out == plain.out
    missing = peg(*ask, "--platform", "rocm")
    assert missing.status == 2 and "there is no rocm device 0" in missing.err and "Traceback" not in missing.err
