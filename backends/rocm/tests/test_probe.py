"""Verdicts about recorded machines. Nothing here imports or needs a ROCm build of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard_rocm.probe import probe

Build = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mi250x", "2 devices (2 x gfx90a, 64 GiB)"),
        ("mi300x-spx", "2 devices (2 x gfx942, 192 GiB)"),
        ("mi300x-cpx", "8 devices (8 x gfx942, 24 GiB)"),
        ("ryzen-and-rx7900", "2 devices (gfx1100, 24 GiB; gfx1036, 1 GiB)"),
        ("ryzen", "1 device (gfx1036, 1 GiB)"),
    ],
)
def test_machines(machine: Build, name: str, reason: str) -> None:
    found = probe(machine(name))
    assert found.present and found.usable
    assert found.reason == reason


def test_no_card(machine: Build, tmp_path: Path) -> None:
    for root in (machine("none"), tmp_path / "empty"):
        found = probe(root)
        assert not found.present and "no AMD GPU" in found.reason


def test_a_container_without_the_devices(machine: Build) -> None:
    """The host's cards show in /sys, but none was given to this container: the CPU is what it is meant to use."""
    found = probe(machine("mi300x-spx", without=("kfd", "dri/renderD128", "dri/renderD129")))
    assert not found.present and "no /dev/kfd (in a container: --device /dev/kfd" in found.reason


def test_a_container_with_one_of_two(machine: Build) -> None:
    found = probe(machine("mi300x-spx", without=("dri/renderD128",)))
    assert found.usable and found.reason.startswith("1 device")


def test_a_container_with_half_of_what_is_needed(machine: Build) -> None:
    found = probe(machine("mi250x", without=("dri/renderD128", "dri/renderD129")))
    assert found.present and not found.usable
    assert "/dev/dri/renderD128 is not there (in a container: --device /dev/dri)" in found.reason


@pytest.mark.parametrize(("closed", "told"), [("kfd", "/dev/kfd"), ("renderD", "/dev/dri/renderD128")])
def test_no_permission(machine: Build, closed: str, told: str) -> None:
    def access(path: Path, mode: int) -> bool:
        assert mode == os.R_OK | os.W_OK
        return closed not in path.name

    found = probe(machine("mi250x"), access)
    assert found.present and not found.usable
    assert f"{told} may not be opened: give this user the groups render and video" in found.reason


@pytest.mark.parametrize("name", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_hidden_and_misnamed_devices(machine: Build, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = machine("mi250x")
    for value in ("", "-1", "none"):
        monkeypatch.setenv(name, value)
        found = probe(root)
        assert not found.present and found.reason == f"hidden by {name}={value!r}"
    monkeypatch.setenv(name, "2")
    found = probe(root)
    assert found.present and not found.usable
    assert found.reason == f"2 devices (2 x gfx90a, 64 GiB), none of which {name}='2' names"
    monkeypatch.setenv(name, "1")
    assert probe(root).reason == "1 device (gfx90a, 64 GiB)"


@pytest.mark.parametrize(
    ("version", "kinds"), [("2.13.0+cpu", {}), ("2.13.0", {"cuda": "13.0"}), ("2.13.0", {"xpu": "2026"})]
)
def test_a_torch_without_hip_is_broken_not_absent(
    machine: Build, torch_built: Callable[..., None], version: str, kinds: dict[str, str]
) -> None:
    root = machine("mi250x")
    torch_built(version, **kinds)
    found = probe(root)
    assert found.present and not found.usable
    assert f"but torch {version} is built without HIP: install a ROCm build of torch" in found.reason


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_torch_for_the_other_card(machine: Build, torch_built: Callable[..., None], kind: str) -> None:
    """A processor's own graphics beside another vendor's card, with a torch for the latter, is nothing to stop for."""
    root = machine("ryzen")
    torch_built("2.13.0", **{kind: "13.0"})
    (root / "dev/nvidia0").touch()
    vendor = root / "sys/class/drm/renderD129/device/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x8086\n")
    found = probe(root)
    assert not found.present and "built for the other GPU that is here" in found.reason
