"""The simulated device computes what the host does, and counts what it was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegboard_sdk.simulated import Counted, SimulatedDevice
from pegboard_sdk.simulated.counted import by_layer, difference

FAR = SimulatedDevice.device


def test_the_example_of_the_readme(simulated_device: SimulatedDevice) -> None:
    x = torch.randn(4, 8, device=simulated_device.device)
    with simulated_device.count() as counted:
        y = torch.relu(x @ x.T)[1:]
        told = y.to("cpu", non_blocking=True)
    assert counted.launches == {"mm": 1, "relu": 1}
    assert counted.copies == {"to the host": 1}
    assert not counted.waits
    assert told.isnan().all()


@pytest.mark.parametrize("inference", [False, True])
def test_it_computes_what_the_host_does(simulated_device: SimulatedDevice, inference: bool) -> None:
    """In place, through views, with a result of several tensors, and with memory from outside of inference mode."""
    source, before = torch.randn(6, 5), torch.zeros(7, 5, device=FAR)
    with torch.inference_mode(inference):
        x = source.to(FAR)
        x[1:3].view(-1)[:4].fill_(7.0)
        before[2:4].index_copy_(0, torch.tensor([1, 0], device=FAR), x[:2])
        parts = F.layer_norm(torch.cat([x, before]), (5,)).split([6, 7])
        found = [part.cpu() for part in parts]
        wanted = source.clone()
        wanted[1:3].view(-1)[:4] = 7.0
        rest = torch.zeros(7, 5)
        rest[2:4] = wanted[:2].flip(0)
        right = F.layer_norm(torch.cat([wanted, rest]), (5,)).split([6, 7])
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_gradients(simulated_device: SimulatedDevice) -> None:
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)
    (layer(x) ** 2).sum().backward()
    far = nn.Linear(3, 4, device=FAR)
    with torch.no_grad():
        for to, of in zip(far.parameters(), layer.parameters(), strict=True):
            to.copy_(of)
    with simulated_device.count() as counted:
        (far(x.to(FAR)) ** 2).sum().backward()
    for to, of in zip(far.parameters(), layer.parameters(), strict=True):
        assert to.grad is not None and of.grad is not None
        assert torch.equal(to.grad.cpu(), of.grad)
    assert counted.waits == {"copy to the device": 1}
    assert counted.launches["mm"] == 1 and counted.launches["addmm"] == 1


WAITS: dict[str, Any] = {
    "_local_scalar_dense": lambda x: float(x.sum()),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: torch.masked_select(x, x > 0),
    "index by a mask": lambda x: x[x > 0],
    "index by indices on the host": lambda x: x[torch.tensor([0, 2])],
    "equal": lambda x: torch.equal(x, x),
    "tolist": lambda x: x.tolist(),
    "copy to the host": lambda x: x.cpu(),
    "copy to the device": lambda x: torch.tensor([1.0, 2.0], device=FAR),
    "copy from memory that is not pinned": lambda x: torch.from_numpy(np.zeros(4)).to(FAR, non_blocking=True),
    "repeat_interleave": lambda x: torch.repeat_interleave(torch.arange(3, device=FAR)),
    "synchronize": lambda x: torch.get_device_module(FAR).synchronize(),
}


@pytest.mark.parametrize("cause", WAITS)
def test_what_makes_the_host_wait(simulated_device: SimulatedDevice, cause: str) -> None:
    x = torch.arange(4.0, device=FAR)
    with simulated_device.count() as counted:
        WAITS[cause](x)
    assert counted.waits == {cause: 1}


def test_what_does_not(simulated_device: SimulatedDevice) -> None:
    x = torch.arange(4.0, device=FAR)
    pinned = torch.empty(4, pin_memory=True)
    assert pinned.is_pinned()
    with simulated_device.count() as counted:
        x.copy_(pinned, non_blocking=True)
        pinned[:2].copy_(x[:2], non_blocking=True)
        x[torch.tensor([1, 0], device="cpu").pin_memory().to(FAR, non_blocking=True)] = 2.0
        torch.repeat_interleave(x, 2, output_size=8)
        torch.where(x > 1, x, 0.0).view(2, 2).transpose(0, 1)[0].unsqueeze(0).expand(3, 2)
        torch.empty_like(x).detach()
        x.new_zeros(0)
    assert not counted.waits
    assert counted.copies == {"to the device": 2, "to the host": 1}
    # What torch makes of a number on the device is a launch too.
    assert counted.launches == {"index_put_": 1, "clone": 1, "gt": 1, "where": 1, "scalar_tensor": 2}


def test_nothing_is_read_before_it_was_waited_for(simulated_device: SimulatedDevice) -> None:
    first, second = torch.tensor([5], device=FAR), torch.tensor([6], device=FAR)
    event = torch.Event(FAR)
    told = first.to("cpu", non_blocking=True)
    event.record()
    later = second.to("cpu", non_blocking=True)
    assert int(told) < 0 and not event.query()
    with simulated_device.count() as counted:
        event.synchronize()
    assert (int(told), counted.waits, counted.behind) == (5, {"event": 1}, [1])
    assert int(later) < 0
    second.sum().item()
    assert int(later) == 6
    with pytest.raises(RuntimeError, match="before it was recorded"):
        torch.Event(FAR).synchronize()


def test_it_is_as_strict_as_devices_are(simulated_device: SimulatedDevice) -> None:
    x = torch.ones(3, device=FAR)
    with pytest.raises(RuntimeError, match="on the host"):
        x + torch.ones(3)
    assert (x + torch.tensor(2.0)).cpu().tolist() == [3.0] * 3
    with pytest.raises(TypeError, match="cpu"):
        x.numpy()
    with pytest.raises(RuntimeError, match="being captured"):
        simulated_device.capture(lambda: print(x.sum().item()))
    with pytest.raises(RuntimeError, match="another simulated device"), SimulatedDevice():
        pass


def test_a_graph_does_it_again(simulated_device: SimulatedDevice) -> None:
    x = torch.tensor([1.0, 2.0], device=FAR)
    made: list[Tensor] = []

    def double(out: Tensor, of: Tensor) -> None:
        out.copy_(2 * of)

    def work() -> None:
        y = torch.empty_like(x)
        simulated_device.launch("double", double, (y, x), {})
        made[:] = [y + 1]

    graph = simulated_device.capture(work)
    assert graph.counted.launches == {"double": 1, "add": 1}
    x.copy_(torch.tensor([10.0, 20.0]))
    with simulated_device.count() as counted:
        graph.replay()
    assert made[0].cpu().tolist() == [21.0, 41.0]
    assert (counted.launches, counted.given) == ({"graph": 1}, 1)


def test_dry() -> None:
    with SimulatedDevice(dry=True) as device, device.count() as counted:
        x = torch.empty(3, device=FAR)
        device.launch("never", lambda x: x.fill_(1.0), (x,), {})
        assert x.cpu().tolist() == [0.0] * 3
    assert counted.launches == {"never": 1}


def test_the_host_is_not_counted(simulated_device: SimulatedDevice) -> None:
    x = torch.ones(2)
    with simulated_device.count() as counted:
        assert x.sum().item() == 2 and x.nonzero().shape == (2, 1)
    assert not counted.given and not counted.waits


def test_layers_and_the_rest() -> None:
    one, two = Counted(), Counted()
    one.launches.update({"mm": 5, "norm": 3})
    two.launches.update({"mm": 9, "norm": 5})
    one.copies["to the device"] = two.copies["to the device"] = 2
    found = by_layer(one, two)
    assert found == {"mm": (4, 1), "norm": (2, 1), "to the device": (0, 2)}
    assert list(difference(found, found)) == []
    assert list(difference(found, {**found, "mm": (3, 1)})) == ["mm: 4 a layer and 1 beside, 3 and 1 wanted"]
    assert two.per(2)["norm"] == 2.5
    with pytest.raises(ValueError, match="mm"):
        by_layer(two, one)
