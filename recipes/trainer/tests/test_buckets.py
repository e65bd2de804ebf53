"""Gradients on their way, in a group of one process: what is sent when. tests/e2e has groups of several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import Parameter

from pegboard_trainer.buckets import Buckets
from pegboard_trainer.placement import Placement
from pegboard_trainer.world import World

Named = list[tuple[str, Parameter]]


@pytest.fixture(scope="module")
def placement() -> Iterator[Placement]:
    """That of one of two ranks with the same data, of which the other one is silent."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("replicate", "shard", "tensor"))
    yield Placement(World(size=2, mesh=mesh, data_group=mesh.get_group("replicate")))
    dist.destroy_process_group()


@pytest.fixture
def named() -> Named:
    """Three layers one behind the other, and a parameter that nothing uses."""
    torch.manual_seed(0)
    layers = [(f"{i}", Parameter(torch.randn(4, 4, dtype=torch.float64))) for i in range(3)]
    return [*layers, ("unused", Parameter(torch.randn(4, 4, dtype=torch.float64)))]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was sent, as it is sent."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, **options: object) -> object:
        sizes.append(tensor.numel())
        return all_reduce(tensor, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dist, "all_reduce", counted)
    return sizes


def loss_of(named: Named) -> Tensor:
    x = torch.ones(4, dtype=torch.float64)
    for _, parameter in named[:3]:
        x = torch.tanh(parameter @ x)
    return x.sum()


def gradients(named: Named) -> list[Tensor | None]:
    return [parameter.grad for _, parameter in named]


ONE = 4 * 4 * 8
"""Bytes of one gradient."""


def test_gradients_are_sent_while_others_are_computed(placement: Placement, named: Named, sent: list[int]) -> None:
    buckets = Buckets(named[:3], placement, size=ONE)
    before: list[int] = []
    named[0][1].register_hook(lambda _: before.append(len(sent)))  # the last gradient that comes
    loss_of(named).backward()
    assert sent == [] and before == [0]
    buckets.arm()
    loss_of(named).backward()
    assert before == [0, 2] and sent == [17, 17, 17]
    found = gradients(named)
    buckets.finish()
    assert sent == [17, 17, 17]
    for _, parameter in named:
        parameter.grad = None
    (2 * loss_of(named)).backward()
    for mine, right in zip(found[:3], gradients(named), strict=False):
        torch.testing.assert_close(mine, right)


def test_what_nobody_has_a_gradient_of_is_left_alone(placement: Placement, named: Named, sent: list[int]) -> None:
    buckets = Buckets(named, placement, size=3 * ONE)
    buckets.arm()
    loss_of(named).backward()
    assert sent == []  # the first bucket waits for the unused one
    wanted = [None if grad is None else grad.clone() for grad in gradients(named)]
    buckets.finish()
    assert sent == [51, 17]
    assert named[3][1].grad is None
    for mine, right in zip(gradients(named)[:3], wanted, strict=False):
        assert mine is not None and right is not None and mine.equal(right)


def test_a_parameter_steps_when_its_gradient_is_back(placement: Placement, named: Named) -> None:
    """Of four parameters no more than two have gradients at a time."""
    stepped: list[str] = []
    most = 0

    def step(name: str, parameter: Parameter) -> None:
        nonlocal most
        most = max(most, sum(grad is not None for grad in gradients(named)))
        stepped.append(name)
        parameter.grad = None

    buckets = Buckets(named[:3], placement, size=ONE, update=step)
    buckets.arm()
    loss_of(named).backward()
    assert stepped == ["2", "1"]
    buckets.finish()
    assert stepped == ["2", "1", "0"] and most == 2
    assert gradients(named) == [None] * 4


def test_one_process_sends_nothing(named: Named, sent: list[int]) -> None:
    buckets = Buckets(named, Placement())
    buckets.arm()
    loss_of(named).backward()
    buckets.finish()
    assert sent == []
    assert named[0][1].grad is not None
