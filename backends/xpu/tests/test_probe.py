"""Verdicts about recorded machines. Nothing here imports or needs an XPU build of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pegboard_xpu.probe import LOADER, probe

Build = Callable[..., Path]


def starts(name: str) -> Any:
    """Load a Level Zero that starts."""
    assert name == LOADER
    return SimpleNamespace(zeInit=lambda flags: 0)


def absent(name: str) -> Any:
    raise OSError(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("max-1550", "4 devices (4 x 0bd5)"),
        ("arc-a770", "1 device (56a0)"),
        ("arc-b580-and-iris", "1 device (e20b)"),
        ("iris", "1 device (9a49, integrated)"),
    ],
)
def test_machines(machine: Build, name: str, reason: str) -> None:
    found = probe(machine(name), starts)
    assert found.present and found.usable
    assert found.reason == reason


def test_no_card(machine: Build, tmp_path: Path) -> None:
    for root in (machine("none"), tmp_path / "empty"):
        assert probe(root, starts).reason == "no Intel GPU"
        assert not probe(root, starts).present


def test_a_container_without_the_devices(machine: Build) -> None:
    found = probe(machine("arc-a770", without=("renderD128",)), starts)
    assert not found.present and "no /dev/dri/renderD128 (in a container: --device /dev/dri)" in found.reason


def test_a_container_with_one_of_two(machine: Build) -> None:
    assert probe(machine("max-1550", without=("renderD128",)), starts).reason == "2 devices (2 x 0bd5)"


def test_no_permission(machine: Build) -> None:
    def access(path: Path, mode: int) -> bool:
        assert mode == os.R_OK | os.W_OK
        return "renderD" not in path.name

    found = probe(machine("arc-a770"), starts, access)
    assert found.present and not found.usable
    assert "/dev/dri/renderD128 may not be opened: give this user the group render" in found.reason


def test_no_level_zero(machine: Build) -> None:
    found = probe(machine("arc-a770"), absent)
    assert found.present and not found.usable and f"{LOADER} cannot be loaded" in found.reason


def test_a_level_zero_without_driver(machine: Build) -> None:
    # ZE_RESULT_ERROR_UNINITIALIZED, as ctypes gives an unsigned number back.
    found = probe(machine("arc-a770"), lambda name: SimpleNamespace(zeInit=lambda flags: 0x78000001 - 2**32))
    assert found.present and not found.usable and "zeInit gives 0x78000001" in found.reason


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("ZE_AFFINITY_MASK", "-1", True),
        ("ZE_AFFINITY_MASK", "9", False),
        ("ONEAPI_DEVICE_SELECTOR", "opencl:cpu", True),
        ("ONEAPI_DEVICE_SELECTOR", "level_zero:9", False),
    ],
)
def test_hidden_and_misnamed_devices(
    machine: Build, monkeypatch: pytest.MonkeyPatch, name: str, value: str, hidden: bool
) -> None:
    root = machine("arc-a770")
    monkeypatch.setenv(name, value)
    found = probe(root, starts)
    assert found.present is not hidden and not found.usable
    told = f"hidden by {name}={value!r}" if hidden else f"1 device (56a0), none of which {name}={value!r} names"
    assert found.reason == told


@pytest.mark.parametrize(
    ("version", "kinds"), [("2.13.0+cpu", {}), ("2.13.0", {"cuda": "13.0"}), ("2.13.0", {"hip": "7.2"})]
)
def test_a_torch_without_xpu_is_broken_not_absent(
    machine: Build, torch_built: Callable[..., None], version: str, kinds: dict[str, str]
) -> None:
    root = machine("arc-a770")
    torch_built(version, **kinds)
    found = probe(root, starts)
    assert found.present and not found.usable
    assert f"but torch {version} is built without XPU support: install an XPU build of torch" in found.reason


@pytest.mark.parametrize(("kind", "node"), [("cuda", "nvidia0"), ("hip", "kfd")])
def test_a_torch_for_the_other_card(machine: Build, torch_built: Callable[..., None], kind: str, node: str) -> None:
    """A processor's own graphics beside another vendor's card, with a torch for the latter, is nothing to stop for."""
    root = machine("iris")
    torch_built("2.13.0", **{kind: "13.0"})
    (root / "dev" / node).touch()
    found = probe(root, starts)
    assert not found.present and "built for the other GPU that is here" in found.reason
