"""The platform's logic over torch's functions, replaced by those of a made-up machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pegboard.errors import DeviceError
from pegboard.types import AttentionSpec
from pegboard_rocm.platform import RocmPlatform

GIB = 1 << 30
LAYER = AttentionSpec(0, 32, 8, 128, 0.0884)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "target": "gfx90a:sramecc+:xnack-",
        "arches": ["gfx90a", "gfx942", "gfx1100"],
        "peers": True,
    }
    answers = {
        "device_count": lambda: 2,
        "get_device_properties": lambda device: SimpleNamespace(gcnArchName=facts["target"]),
        "get_arch_list": lambda: facts["arches"],
        "can_device_access_peer": lambda device, peer: facts["peers"],
        "mem_get_info": lambda index: (60 * GIB, 64 * GIB),
        "memory_reserved": lambda index: 2 * GIB,
        "memory_allocated": lambda index: 1 * GIB,
        "get_per_process_memory_fraction": lambda index: 1.0,
        "get_device_name": lambda index: "AMD Instinct MI250X",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.version, "hip", "7.2.1")
    return facts


def test_devices(two_devices: dict[str, Any]) -> None:
    infos = RocmPlatform().devices()
    assert [info.name for info in infos] == ["AMD Instinct MI250X"] * 2
    assert infos[0].available_memory == 61 * GIB
    assert RocmPlatform().device(1) == torch.device("cuda", 1)  # torch's name for them


@pytest.mark.parametrize(
    ("target", "formats", "dtype"),
    [
        ("gfx906:sramecc+:xnack-", set(), torch.float16),
        ("gfx908", {"bf16"}, torch.bfloat16),
        ("gfx90a:sramecc+:xnack-", {"bf16"}, torch.bfloat16),
        ("gfx942:sramecc+:xnack-", {"bf16", "fp8_fnuz"}, torch.bfloat16),
        ("gfx950", {"bf16", "fp8"}, torch.bfloat16),
        ("gfx1030", set(), torch.float16),
        ("gfx1100", {"bf16"}, torch.bfloat16),
        ("gfx1201", {"bf16", "fp8"}, torch.bfloat16),
    ],
)
def test_number_formats(two_devices: dict[str, Any], target: str, formats: set[str], dtype: torch.dtype) -> None:
    two_devices.update(target=target, arches=[])
    assert RocmPlatform().capabilities() == {"graphs", "pinned", "p2p", *formats}
    assert RocmPlatform().default_dtype() == dtype


def test_cards_that_cannot_reach_each_other(two_devices: dict[str, Any]) -> None:
    two_devices["peers"] = False
    assert "p2p" not in RocmPlatform().capabilities()


@pytest.mark.parametrize(
    ("target", "arches", "usable"),
    [
        ("gfx90a:sramecc+:xnack-", ["gfx90a", "gfx942"], True),
        ("gfx90a", ["gfx90a:xnack-"], True),
        ("gfx1036", ["gfx90a", "gfx1100"], False),
        ("gfx1151", ["gfx11-generic"], True),
        ("gfx942", ["gfx9-4-generic"], True),
        ("gfx942", ["gfx11-generic"], False),
    ],
)
def test_cards_that_this_torch_is_not_built_for(
    two_devices: dict[str, Any], target: str, arches: list[str], usable: bool
) -> None:
    two_devices.update(target=target, arches=arches)
    if usable:
        assert RocmPlatform().device().index == 0
        return
    with pytest.raises(DeviceError, match=f"it is a {target}, and torch .* is built for {arches[0]}") as caught:
        RocmPlatform().device()
    assert "HIP_VISIBLE_DEVICES" in (caught.value.fix or "")


@pytest.mark.parametrize("index", [-1, 2])
def test_a_device_that_is_not_there(two_devices: dict[str, Any], index: int) -> None:
    with pytest.raises(DeviceError, match=f"there is no rocm device {index}") as caught:
        RocmPlatform().device(index)
    assert "devices 0 to 1 are there" in (caught.value.fix or "")


def test_cards_of_a_cuda_build_are_not_ours(two_devices: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    assert RocmPlatform().devices() == []
    with pytest.raises(DeviceError) as caught:
        RocmPlatform().device()
    assert "built without HIP: install a ROCm build" in (caught.value.fix or "")


def test_what_it_computes_with(two_devices: dict[str, Any]) -> None:
    platform = RocmPlatform()
    assert platform.attention_preference("decode", LAYER) == ("triton", "sdpa")
    assert platform.attention_preference("train", LAYER) == ("sdpa",)
    assert platform.communication_backend() == "nccl"
    compiles, tuned = platform.notes()
    assert "compiles for hip:gfx90a" in compiles and "hip:gfx942" in compiles
    assert "block sizes measured on AMD Instinct MI250X: none" in tuned
