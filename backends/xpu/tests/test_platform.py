"""The platform's logic over torch's functions, replaced by those of a made-up machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pegboard.errors import DeviceError
from pegboard.types import AttentionSpec
from pegboard_triton import compiler
from pegboard_xpu import platform as module
from pegboard_xpu.platform import XpuPlatform

GIB = 1 << 30
LAYER = AttentionSpec(0, 32, 8, 128, 0.0884)


@pytest.fixture
def two_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    facts: dict[str, Any] = {"units": True, "peers": False}
    answers = {
        "device_count": lambda: 2,
        "get_device_capability": lambda device: {"has_subgroup_matrix_multiply_accumulate": facts["units"]},
        "can_device_access_peer": lambda device, peer: facts["peers"],
        "mem_get_info": lambda index: (60 * GIB, 64 * GIB),
        "memory_reserved": lambda index: 2 * GIB,
        "memory_allocated": lambda index: 1 * GIB,
        "get_per_process_memory_fraction": lambda index: 0.5,
        "get_device_name": lambda index: "Intel(R) Data Center GPU Max 1550",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.xpu, name, answer, raising=False)
    monkeypatch.delattr(torch.xpu, "XPUGraph", raising=False)
    monkeypatch.setattr(torch.version, "xpu", "20260000", raising=False)
    module._graphs_work.cache_clear()
    yield facts
    module._graphs_work.cache_clear()


def test_devices(two_tiles: dict[str, Any]) -> None:
    infos = XpuPlatform().devices()
    assert [info.index for info in infos] == [0, 1]
    assert infos[0].available_memory == 31 * GIB  # half of the card's is this process's, and 1 GiB is taken
    assert XpuPlatform().device(1) == torch.device("xpu", 1)


@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_capabilities(two_tiles: dict[str, Any], units: bool, dtype: torch.dtype) -> None:
    two_tiles.update(units=units, peers=units)
    assert XpuPlatform().capabilities() == {"pinned", *({"bf16", "p2p"} if units else ())}
    assert XpuPlatform().default_dtype() == dtype


class Graphs:
    """Torch's functions for graphs, on the host. works: whether the driver can."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
        self.works, self.tried = works, 0
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
        for name, function in (
            ("XPUGraph", self.make),
            ("graph", self.graph),
            ("device", self.device),
            ("synchronize", list),
        ):
            monkeypatch.setattr(torch.xpu, name, function, raising=False)

    def make(self) -> Any:
        self.tried += 1
        return SimpleNamespace(replay=lambda: None)

    @contextlib.contextmanager
    def device(self, index: int) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        if not self.works:
            raise RuntimeError("the device has no aspect ext_oneapi_limited_graph")
        yield


@pytest.mark.parametrize("works", [True, False])
def test_graphs_are_tried_once(two_tiles: dict[str, Any], monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    graphs = Graphs(monkeypatch, works)
    for _ in range(2):
        assert ("graphs" in XpuPlatform().capabilities()) is works
    assert graphs.tried == 1


def test_without_graphs(two_tiles: dict[str, Any]) -> None:
    assert XpuPlatform().graph_memory() is None
    with pytest.raises(DeviceError, match="cannot capture graphs"):
        XpuPlatform().capture(lambda: None)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_device_that_is_not_there(two_tiles: dict[str, Any], index: int) -> None:
    with pytest.raises(DeviceError, match=f"there is no xpu device {index}") as caught:
        XpuPlatform().device(index)
    assert "ZE_AFFINITY_MASK" in (caught.value.fix or "")


def test_a_torch_built_for_something_else(two_tiles: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "xpu", None)
    assert XpuPlatform().devices() == []
    with pytest.raises(DeviceError) as caught:
        XpuPlatform().device()
    assert "install an XPU build" in (caught.value.fix or "")


def test_without_a_triton_for_intel(two_tiles: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Torch's own functions compute, and one line says so."""
    assert compiler.lacking("xpu"), "the Triton of the tests has a backend for Intel GPUs now: test with it"
    platform = XpuPlatform()
    assert platform.kernels("decode", torch.bfloat16) == {}
    assert platform.kernels("train", torch.bfloat16) == {}
    assert platform.attention_preference("decode", LAYER) == ("sdpa",)
    assert "no backend intel" in platform.attention_reason("decode", LAYER)
    assert platform.notes() == [f"no kernels of pegboard-triton: {compiler.lacking('xpu')}"]
    assert platform.communication_backend() == "xccl"
