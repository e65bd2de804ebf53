"""The base of accelerators' platforms over a device module that is made up here, and registered as torch's extensions are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pegboard.accelerator import WARM_UPS, AcceleratorPlatform
from pegboard.errors import DeviceError
from pegboard.types import AttentionSpec

MIB = 1 << 20


class Module(SimpleNamespace):
    """Three devices; the second may not reach the others. log: what was done on streams and graphs."""

    def __init__(self) -> None:
        super().__init__(log=[], share=1.0)

    def device_count(self) -> int:
        return 3

    def get_device_name(self, index: int) -> str:
        return f"Card {index}"

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 100 * MIB, 400 * MIB

    def memory_reserved(self, index: int) -> int:
        return 200 * MIB

    def memory_allocated(self, index: int) -> int:
        return 150 * MIB

    def get_per_process_memory_fraction(self, index: int) -> float:
        return self.share

    def can_device_access_peer(self, device: torch.device, peer: int) -> bool:
        return 1 not in (device.index, peer)

    def synchronize(self, device: torch.device) -> None:
        self.log.append(f"wait for {device.index}")


class Graphs(Module):
    """And one that captures."""

    @contextlib.contextmanager
    def _entered(self, what: str) -> Iterator[None]:
        self.log.append(f"enter {what}")
        yield
        self.log.append(f"leave {what}")

    def Stream(self) -> Any:
        return SimpleNamespace(name="side", wait_stream=lambda other: self.log.append("side waits"))

    def current_stream(self) -> Any:
        return SimpleNamespace(name="main", wait_stream=lambda other: self.log.append(f"main waits for {other.name}"))

    def device(self, device: torch.device) -> Any:
        return self._entered(f"device {device.index}")

    def stream(self, stream: Any) -> Any:
        return self._entered(stream.name)

    def graph_pool_handle(self) -> str:
        return "pool"

    def CardGraph(self) -> Any:
        return SimpleNamespace(
            capture_begin=lambda pool: self.log.append(f"begin in {pool}"),
            capture_end=lambda: self.log.append("end"),
            replay=lambda: self.log.append("replay"),
        )


class Cards(AcceleratorPlatform):
    kind = "privateuseone"
    label = "cards"
    visible = "VISIBLE_CARDS"
    graph_class = "CardGraph"
    fast: frozenset[str] = frozenset({"bf16"})

    def fast_dtypes(self, index: int) -> set[str]:
        return set(self.fast)

    def refusal(self, index: int) -> str:
        return "it is too old" if index == 2 else ""

    def attention_preference(self, phase: Any, spec: AttentionSpec) -> tuple[str, ...]:
        return ("any",)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[Module], Module]:
    def install(module: Module) -> Module:
        monkeypatch.setattr(torch, "get_device_module", lambda kind: {"privateuseone": module}[kind])
        return module

    return install


def test_devices(module: Any) -> None:
    there = module(Module())
    infos = Cards().devices()
    assert [(info.index, info.name, info.total_memory) for info in infos] == [
        (i, f"Card {i}", 400 * MIB) for i in range(3)
    ]
    assert infos[0].available_memory == 150 * MIB  # what is free, and what the allocator holds for nothing
    there.share = 0.5
    assert Cards().devices()[0].available_memory == 50 * MIB
    there.share = 0.1
    assert Cards().devices()[0].available_memory == 0


def test_a_module_without_shares(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Module, "get_per_process_memory_fraction")
    module(Module())
    assert Cards().devices()[0].available_memory == 150 * MIB


def test_capabilities(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module(Module())
    assert Cards().capabilities(0) == {"pinned", "bf16", "p2p"}
    assert Cards().capabilities(1) == {"pinned", "bf16"}
    assert Cards().default_dtype() == torch.bfloat16
    module(Graphs())
    assert Cards().capabilities(1) == {"pinned", "bf16", "graphs"}
    monkeypatch.setattr(Cards, "fast", frozenset())
    assert Cards().default_dtype() == torch.float16


@pytest.mark.parametrize("index", [-1, 3])
def test_absent_devices(module: Any, index: int) -> None:
    module(Module())
    with pytest.raises(DeviceError, match=f"there is no cards device {index}") as caught:
        Cards().device(index)
    assert caught.value.fix == "devices 0 to 2 are there; VISIBLE_CARDS decides which are"


def test_a_device_that_this_torch_cannot_use(module: Any) -> None:
    module(Module())
    for ask in (Cards().device, Cards().capabilities, Cards().default_dtype):
        with pytest.raises(DeviceError, match="cards device 2 cannot be used: it is too old") as caught:
            ask(2)
        assert "VISIBLE_CARDS" in (caught.value.fix or "")


def test_devices_of_somebody_else(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module(Module())
    monkeypatch.setattr(Cards, "foreign", lambda self: "they belong to the platform other")
    assert Cards().devices() == []
    with pytest.raises(DeviceError) as caught:
        Cards().device()
    assert caught.value.fix == "they belong to the platform other"


def test_without_graphs(module: Any) -> None:
    there = module(Module())
    assert Cards().graph_memory() is None
    with pytest.raises(DeviceError, match="cannot capture"):
        Cards().capture(lambda: None)
    Cards().synchronize(1)
    assert there.log == ["wait for 1"]


def test_a_capture(module: Any) -> None:
    """Warmed up on a side stream that waits for what was before it, and captured after that."""
    there = module(Graphs())
    memory = Cards().graph_memory(1)
    there.log.clear()
    graph = Cards().capture(lambda: there.log.append("work"), 1, memory)
    graph.replay()
    assert there.log == [
        "enter device 1",
        "side waits",
        "enter side",
        *["work"] * WARM_UPS,
        "begin in pool",
        "work",
        "end",
        "leave side",
        "main waits for side",
        "leave device 1",
        "replay",
    ]


def test_a_capture_that_fails_is_ended(module: Any) -> None:
    there = module(Graphs())
    memory = Cards().graph_memory(1)
    calls = iter([None, ZeroDivisionError("no")])

    def work() -> None:
        if (error := next(calls)) is not None:
            raise error

    with pytest.raises(ZeroDivisionError):
        Cards().capture(work, 1, memory)
    assert there.log[-2:] == ["begin in pool", "end"]
