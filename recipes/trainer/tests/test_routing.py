"""Losses over the choices of routers: values and gradients against the formulas, written down with autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pegboard.errors import ConfigError
from pegboard.nn import Experts, MoE
from pegboard.types import ForwardContext
from pegboard_trainer.config import RoutingSection
from pegboard_trainer.routing import Watch, follow, freeze_routers

COUNT, HIDDEN, K, LAYERS = 5, 6, 2, 3


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MoE(HIDDEN, Experts(COUNT, HIDDEN, 4), K, renormalise=True, index=index) for index in range(LAYERS)
        )
        generator = torch.Generator().manual_seed(0)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: Tensor, *, recompute: bool = False, seen: list[Tensor] | None = None) -> Tensor:
        ctx = ForwardContext(torch.arange(len(x)), [])
        for layer in self.layers:
            if seen is not None:
                seen.append(layer.gate(x))
            x = x + (checkpoint(layer, x, ctx, use_reentrant=False) if recompute else layer(x, ctx))
        return x


def losses(logits: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Balance and z of routers that saw the same tokens, by definition."""
    together = torch.cat(logits)
    probs = together.softmax(-1)
    chosen = nn.functional.one_hot(probs.topk(K, -1).indices, COUNT).double()
    balance = COUNT * (chosen.sum(1).mean(0) * probs.mean(0)).sum()
    return balance, together.logsumexp(-1).square().mean()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64) for rows in (7, 12)]


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_losses(recompute: bool) -> None:
    model, rows = Stack(), sum(map(len, batches()))
    wanted: list[float] = []
    total: Any = 0.0
    for x in batches():
        seen: list[Tensor] = []
        out = model(x, seen=seen)
        balance, z = losses(seen)
        total = total + out.square().sum() + len(x) / rows * (0.3 * balance + 0.2 * z)
        wanted += [balance.item() * len(x) / rows, z.item() * len(x) / rows]
    exact = torch.autograd.grad(total, list(model.parameters()))

    routing = follow([model], {}, RoutingSection(balance=0.3, z=0.2, experts=True))
    assert routing is not None
    for x in batches():
        routing.begin(torch.tensor(len(x) / rows, dtype=torch.float64))
        model(x, recompute=recompute).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], list(exact))

    found = {name: float(total) / float(count) for name, (total, count) in routing.metrics().items()}
    assert found["router/balance"] == pytest.approx(wanted[0] + wanted[2], rel=1e-5)
    assert found["router/z"] == pytest.approx(wanted[1] + wanted[3], rel=1e-5)
    assert sum(found[f"router/load/{expert}"] for expert in range(COUNT)) == pytest.approx(1)
    assert 1 <= found["router/max_load"] <= COUNT and 0 < found["router/entropy"] <= 1
    assert not any(float(total) for name, (total, _) in routing.metrics().items() if name != "router/unused")


def test_statistics_of_a_router_that_has_favourites() -> None:
    model = Stack()
    routing = follow([model], {}, RoutingSection())
    assert routing is not None
    with torch.no_grad():
        for layer in model.layers:
            layer.gate.weight.zero_()
            layer.gate.weight[1:3, 0] = 5.0
    model(torch.ones(4, HIDDEN, dtype=torch.float64))
    found = {name: float(total) / float(count) for name, (total, count) in routing.metrics().items()}
    assert found["router/unused"] == pytest.approx(3 / 5)
    assert found["router/max_load"] == pytest.approx(COUNT / 2)
    assert found["router/entropy"] == pytest.approx(torch.tensor(2.0).log().item() / torch.tensor(5.0).log().item())


def test_without_gradients_nothing_is_followed() -> None:
    model = Stack()
    routing = follow([model], {"router_aux_loss_coef": 0.01}, RoutingSection(balance="config"))
    assert routing is not None
    with torch.no_grad():
        model(batches()[0])
    assert not any(float(count) for name, (_, count) in routing.metrics().items() if name in ("router/z",))
    (watch,) = routing._watches
    assert isinstance(watch, Watch) and watch._balance == 0.01


def test_routers_can_be_frozen() -> None:
    model = Stack()
    freeze_routers(model)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        f"layers.{index}.gate.weight" for index in range(LAYERS)
    }


def test_a_model_without_experts_is_refused_what_is_about_them() -> None:
    assert follow([nn.Linear(2, 2)], {}, RoutingSection()) is None
    with pytest.raises(ConfigError, match=r"routing\.z is about a mixture of experts"):
        follow([nn.Linear(2, 2)], {}, RoutingSection(z=0.1))
