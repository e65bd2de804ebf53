"""Which devices there are, and which of them each setting leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard_rocm.topology import gpus, visible

GIB = 1 << 30
Build = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "targets", "gib"),
    [
        ("mi250x", ["gfx90a"] * 2, 64),
        ("mi300x-spx", ["gfx942"] * 2, 192),
        ("mi300x-cpx", ["gfx942"] * 8, 24),
        ("ryzen-and-rx7900", ["gfx1100", "gfx1036"], 24),
        ("none", [], 0),
    ],
)
def test_devices(machine: Build, name: str, targets: list[str], gib: int) -> None:
    found = gpus(machine(name))
    assert [gpu.target for gpu in found] == targets
    if found:
        assert found[0].memory == gib * GIB
        assert [str(gpu.node) for gpu in found] == [f"dri/renderD{128 + i}" for i in range(len(found))]


def test_ids_are_those_of_the_runtime(machine: Build) -> None:
    assert [gpu.unique for gpu in gpus(machine("mi250x"))] == ["GPU-b3a1c0de00000010", "GPU-b3a1c0de00000011"]
    assert gpus(machine("ryzen"))[0].unique == ""


def test_nodes_are_ordered_by_number(machine: Build) -> None:
    """The tenth comes after the ninth, not after the first."""
    root = machine("mi300x-cpx")
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    (nodes / "2").rename(nodes / "10")
    assert str(gpus(root)[-1].node) == "dri/renderD129"


def test_nodes_of_another_container(machine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses to show the properties of a GPU that the container's devices do not include."""
    root = machine("mi250x")
    kept = Path.read_text

    def refuse(path: Path, *args: object, **options: object) -> str:
        if path.parts[-2:] == ("1", "properties"):
            raise PermissionError(str(path))
        return kept(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse)
    assert [str(gpu.node) for gpu in gpus(root)] == ["dri/renderD129"]


def test_cards_of_other_vendors(machine: Build) -> None:
    root = machine("mi250x")
    file = root / "sys/class/kfd/kfd/topology/nodes/1/properties"
    file.write_text(file.read_text().replace("vendor_id 4098", "vendor_id 4318"))
    assert len(gpus(root)) == 1


FIRST, SECOND = "GPU-b3a1c0de00000010", "GPU-b3a1c0de00000011"


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ({}, [128, 129]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [129]),
        ({"ROCR_VISIBLE_DEVICES": "1,0"}, [129, 128]),
        ({"ROCR_VISIBLE_DEVICES": SECOND}, [129]),
        ({"ROCR_VISIBLE_DEVICES": SECOND.upper()}, [129]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-b3a1"}, []),  # the beginning of both
        ({"ROCR_VISIBLE_DEVICES": "1,1,0"}, [129]),  # a device named again ends this list
        ({"HIP_VISIBLE_DEVICES": "1,1,0"}, [129, 128]),  # and is passed by in that one
        ({"HIP_VISIBLE_DEVICES": f"{SECOND},0"}, [129, 128]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [129]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [128]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [129]),  # the second numbers what the first leaves
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "CUDA_VISIBLE_DEVICES": "1"}, [128]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": "7"}, []),
        ({"GPU_DEVICE_ORDINAL": "1"}, [128, 129]),
    ],
)
def test_settings(machine: Build, setting: dict[str, str], left: list[int]) -> None:
    found, emptied = visible(gpus(machine("mi250x")), setting)
    assert [str(gpu.node) for gpu in found] == [f"dri/renderD{minor}" for minor in left]
    assert bool(emptied) is not bool(left)
    assert not emptied or emptied.partition("=")[0] in setting


def test_the_environment_is_what_is_read_by_default(machine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "3,5")
    found, _ = visible(gpus(machine("mi300x-cpx")), os.environ)
    assert [str(gpu.node) for gpu in found] == ["dri/renderD131", "dri/renderD133"]
