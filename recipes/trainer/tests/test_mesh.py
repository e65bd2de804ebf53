"""How a process joins others on an accelerator, told without one: torch's own functions are replaced, as far as they need a device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pegboard.errors import ConfigError
from pegboard.interfaces.platform import DeviceInfo
from pegboard_sdk.toys.platform import HostPlatform
from pegboard_trainer import mesh
from pegboard_trainer.config import MeshSection


class Cards(HostPlatform):
    """Devices of torch's type "cuda"."""

    def __init__(self, count: int) -> None:
        self.count = count

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(index, "card", 1, 1) for index in range(self.count)]

    def device(self, index: int = 0) -> torch.device:
        return torch.device("cuda", index)

    def communication_backend(self) -> str:
        return "nccl"


class Stopped(Exception):
    """Behind this point a device is needed."""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a process of two does until its group is made, in order."""
    seen: list[Any] = []
    module = SimpleNamespace(set_device=lambda device: seen.append(("device", str(device))))

    def stop(kind: str, shape: tuple[int, ...], **more: Any) -> None:
        seen.append(("mesh", kind, shape))
        raise Stopped

    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: seen.append(("group", backend)))
    monkeypatch.setattr(mesh, "init_device_mesh", stop)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    return seen


def test_a_process_has_its_own_device_and_both_kinds_of_tensors_are_sent(done: list[Any]) -> None:
    with pytest.raises(Stopped):
        mesh.join(MeshSection(shard=2), Cards(2))
    # The device comes first: a group is bound to that which is current when it is made.
    assert done == [("device", "cuda:1"), ("group", "cpu:gloo,cuda:nccl"), ("mesh", "cuda", (1, 2, 1))]


def test_where_a_process_sees_one_device_it_is_that_one(done: list[Any]) -> None:
    with pytest.raises(Stopped):
        mesh.join(MeshSection(shard=2), Cards(1))
    assert done[0] == ("device", "cuda:0")


def test_the_host_sends_by_its_own_backend(done: list[Any]) -> None:
    with pytest.raises(Stopped):
        mesh.join(MeshSection(tensor=2), HostPlatform())
    assert done == [("group", "gloo"), ("mesh", "cpu", (1, 1, 2))]


def test_another_number_of_processes_is_an_error(done: list[Any]) -> None:
    with pytest.raises(ConfigError, match="3 processes"):
        mesh.join(MeshSection(replicate=3), Cards(2))
    assert not done
