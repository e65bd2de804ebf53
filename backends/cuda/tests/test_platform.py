"""The platform's logic over torch's CUDA functions, replaced by those of a made-up machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pegboard.errors import DeviceError
from pegboard_cuda.platform import CudaPlatform

GIB = 1 << 30


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "generation": (9, 0),
        "peers": True,
        "arches": ["sm_75", "sm_90a", "compute_120"],
        "share": 1.0,
    }
    answers = {
        "device_count": lambda: 2,
        "get_device_capability": lambda device: facts["generation"],
        "can_device_access_peer": lambda a, b: facts["peers"],
        "mem_get_info": lambda index: (10 * GIB, 80 * GIB),
        "memory_reserved": lambda index: 5 * GIB,
        "memory_allocated": lambda index: 3 * GIB,
        "get_device_name": lambda index: f"GPU {index}",
        "get_arch_list": lambda: facts["arches"],
        "get_per_process_memory_fraction": lambda index: facts["share"],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.version, "hip", None)
    return facts


def test_devices(two_devices: dict[str, Any]) -> None:
    infos = CudaPlatform().devices()
    assert [info.name for info in infos] == ["GPU 0", "GPU 1"]
    assert infos[1].index == 1 and infos[1].total_memory == 80 * GIB
    assert infos[0].available_memory == 12 * GIB  # the allocator's unused part counts as free


def test_a_share_of_the_memory(two_devices: dict[str, Any]) -> None:
    two_devices["share"] = 0.1
    assert CudaPlatform().devices()[0].available_memory == 5 * GIB  # 8 GiB in all, 3 of which are taken
    two_devices["share"] = 0.01
    assert CudaPlatform().devices()[0].available_memory == 0


@pytest.mark.parametrize(
    ("generation", "peers", "wanted", "dtype"),
    [
        ((7, 5), False, {"graphs", "pinned"}, torch.float16),
        ((8, 6), True, {"graphs", "pinned", "bf16", "p2p"}, torch.bfloat16),
        ((8, 9), False, {"graphs", "pinned", "bf16", "fp8"}, torch.bfloat16),
        ((9, 0), True, {"graphs", "pinned", "bf16", "fp8", "p2p"}, torch.bfloat16),
        ((12, 1), False, {"graphs", "pinned", "bf16", "fp8"}, torch.bfloat16),
    ],
)
def test_capabilities(
    two_devices: dict[str, Any], generation: tuple[int, int], peers: bool, wanted: set[str], dtype: torch.dtype
) -> None:
    two_devices.update(generation=generation, peers=peers)
    assert CudaPlatform().capabilities(1) == wanted
    assert CudaPlatform().default_dtype(1) == dtype


@pytest.mark.parametrize("index", [-1, 2])
def test_a_device_that_is_not_there(two_devices: dict[str, Any], index: int) -> None:
    with pytest.raises(DeviceError, match=f"no cuda device {index}") as caught:
        CudaPlatform().device(index)
    assert "devices 0 to 1" in str(caught.value.fix)


def test_no_device_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert CudaPlatform().devices() == []
    with pytest.raises(DeviceError) as caught:
        CudaPlatform().device()
    assert "no cuda device" in str(caught.value.fix)


def test_a_card_older_than_this_torch(two_devices: dict[str, Any]) -> None:
    two_devices["generation"] = (6, 1)
    for ask in (CudaPlatform().device, CudaPlatform().capabilities, CudaPlatform().default_dtype):
        with pytest.raises(DeviceError, match=r"compute capability is 6\.1, and torch .* begins at 7\.5"):
            ask(1)
    assert len(CudaPlatform().devices()) == 2  # numbered as torch does


def test_cards_of_a_rocm_build_are_not_ours(two_devices: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.2.1")
    assert CudaPlatform().devices() == []
    with pytest.raises(DeviceError) as caught:
        CudaPlatform().device()
    assert "platform rocm" in str(caught.value.fix)


def test_communication() -> None:
    assert CudaPlatform().communication_backend() == "nccl"
