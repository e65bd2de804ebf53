from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegboard import reference
from pegboard.errors import ModelError
from pegboard.nn import Experts, Linear, MoE
from pegboard.nn.mixed import expert_counts, expert_rules
from pegboard.types import ForwardContext

GENERATOR = torch.Generator().manual_seed(3)
COUNT, HIDDEN, INNER, K = 5, 6, 4, 2


def filled(module: nn.Module, dtype: torch.dtype = torch.float64) -> Any:
    module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=GENERATOR, dtype=torch.float64))
    for child in module.modules():
        if isinstance(child, Experts):
            child.gate_up.fuse()
            child.down.fuse()
    return module


def draw(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, ids that leave the last expert out, weights."""
    x = torch.randn(rows, HIDDEN, generator=GENERATOR, dtype=torch.float64).requires_grad_()
    ids = torch.rand(rows, COUNT - 1, generator=GENERATOR).argsort(-1)[:, :K]
    return x, ids, torch.rand(rows, K, generator=GENERATOR, dtype=torch.float64).requires_grad_()


def oracle(experts: Experts, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    children = [experts.get_submodule(str(number)) for number in range(COUNT)]
    gate_up = torch.stack([torch.cat((e.gate_proj.weight, e.up_proj.weight)) for e in children])
    out: Tensor = reference.OPS["moe"](x, gate_up, torch.stack([e.down_proj.weight for e in children]), ids, weights)
    return out


def gradients(out: Tensor, experts: nn.Module, *inputs: Tensor) -> list[Tensor]:
    leaves = [*inputs, *experts.parameters()]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return list(torch.autograd.grad(out, leaves, upstream))


class Wrapped(nn.Module):
    """An adapted layer that adds half of the product once more, and knows nothing of groups."""

    def __init__(self, base: Linear, *, additive: bool = True) -> None:
        super().__init__()
        self.base, self.additive = base, additive
        self.in_features, self.out_features = base.in_features, base.out_features
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return self.base(x) + self.delta(x, ctx)

    def delta(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        self.seen.append(None if ctx is None else ctx.adapter_slots)
        return self.base(x) / 2


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("fused", [True, False])
def test_experts_and_their_gradients(rows: int, fused: bool) -> None:
    experts = filled(Experts(COUNT, HIDDEN, INNER))
    if not fused:
        experts.gate_up.unfuse()
        experts.down.unfuse()
    x, ids, weights = draw(rows)
    out, wanted = experts(x, ids, weights), oracle(experts, x, ids, weights)
    torch.testing.assert_close(out, wanted)
    if rows:
        got, exact = gradients(out, experts, x, weights), gradients(wanted, experts, x, weights)
        torch.testing.assert_close(got, exact)
    with torch.no_grad():
        torch.testing.assert_close(experts(x, ids, weights), wanted)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    experts = filled(Experts(COUNT, HIDDEN, INNER)).requires_grad_(False)
    x, ids, weights = draw(7)
    (d_x,) = torch.autograd.grad(experts(x, ids, weights).sum(), [x])
    torch.testing.assert_close(d_x, torch.autograd.grad(oracle(experts, x, ids, weights).sum(), [x])[0])


def test_parameters_are_views_that_a_cast_parts() -> None:
    experts = filled(Experts(COUNT, HIDDEN, INNER))
    storage = experts.gate_up.stacked()
    with torch.no_grad():
        experts.get_submodule("1").up_proj.weight.fill_(3)
    assert storage is not None and bool((storage[1, INNER:] == 3).all())
    assert storage.shape == (COUNT, 2 * INNER, HIDDEN)
    experts.float()
    assert not experts.gate_up.fused and experts.gate_up.stacked() is None
    assert experts.gate_up.fuse() and experts.gate_up.stacked().dtype == torch.float32


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_layers_that_take_the_place_of_others(additive: bool, fused: bool) -> None:
    experts = filled(Experts(COUNT, HIDDEN, INNER))
    if not fused:
        experts.gate_up.unfuse()
    x, ids, weights = draw(7)
    scaled = filled(Experts(COUNT, HIDDEN, INNER))
    with torch.no_grad():
        for (name, mine), theirs in zip(scaled.named_parameters(), experts.parameters(), strict=True):
            mine.copy_(theirs * (1.5 if "up_proj" in name or "2.down_proj" in name else 1.0))
    for number in range(COUNT):
        expert = experts.get_submodule(str(number))
        expert.up_proj = Wrapped(expert.up_proj, additive=additive)
    experts.get_submodule("2").down_proj = Wrapped(experts.get_submodule("2").down_proj, additive=additive)
    wanted = oracle(scaled, x, ids, weights)
    torch.testing.assert_close(experts(x, ids, weights), wanted)
    with torch.no_grad():
        torch.testing.assert_close(experts(x, ids, weights), wanted)
    loss = experts(x, ids, weights).sum()
    assert all(grad is not None for grad in torch.autograd.grad(loss, list(experts.parameters())))


def test_slots_follow_the_rows() -> None:
    experts = filled(Experts(COUNT, HIDDEN, INNER))
    expert = experts.get_submodule("1")
    expert.down_proj = wrapped = Wrapped(expert.down_proj)
    x, _, weights = draw(4)
    ids = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 1]])
    ctx = ForwardContext(torch.arange(4), [], adapter_slots=torch.tensor([7, 8, 9, -1]))
    with torch.no_grad():
        experts(x, ids, weights, ctx)
    assert [slots.tolist() for slots in wrapped.seen if slots is not None] == [[7, 9, -1]]


def test_a_mixture_with_a_shared_expert() -> None:
    layer = filled(MoE(HIDDEN, Experts(COUNT, HIDDEN, INNER), K, renormalise=True, shared=3))
    x, _, _ = draw(7)
    ctx = ForwardContext(torch.arange(7), [])
    ids, weights = reference.OPS["moe_route"](x @ layer.gate.weight.t(), K, True)
    shared = layer.shared_expert(x, ctx) * torch.sigmoid(x @ layer.shared_expert_gate.weight.t())
    torch.testing.assert_close(layer(x, ctx), oracle(layer.experts, x, ids, weights) + shared)
    assert {name for name, _ in layer.named_parameters() if "experts." not in name} == {
        "gate.weight",
        "shared_expert.gate_proj.weight",
        "shared_expert.up_proj.weight",
        "shared_expert.down_proj.weight",
        "shared_expert_gate.weight",
    }


def test_a_watch_sees_logits_and_choices() -> None:
    class Watch:
        def weigh(self, layer: int, logits: Tensor, *, share: float) -> Tensor:
            seen.append((layer, logits.shape, share))
            return logits.neg()

        def count(self, layer: int, ids: Tensor) -> None:
            seen.append((layer, ids))

    seen: list[Any] = []
    layer = filled(MoE(HIDDEN, Experts(COUNT, HIDDEN, INNER), K, renormalise=False, index=3))
    x, _, _ = draw(7)
    layer.watch = Watch()
    layer(x, ForwardContext(torch.arange(7), []))
    assert seen[0] == (3, (7, COUNT), 1.0)
    wanted = (x @ layer.gate.weight.t()).topk(K, -1, largest=False).indices
    assert seen[1][0] == 3 and torch.equal(seen[1][1], wanted)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok is 5, more than its num_experts, 4"),
        ({"num_local_experts": 70000}, "2 layers of 70000 experts; at most 65536"),
        ({"num_experts": "8"}, "num_experts is '8'"),
    ],
)
def test_counts_that_cannot_be(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        expert_counts({"num_hidden_layers": 2, **config}, 8, 2)


def test_experts_split_both_ways() -> None:
    from fnmatch import fnmatchcase

    name = "model.layers.3.mlp.experts.11.up_proj.weight"
    assert [r.style for r in expert_rules() if fnmatchcase(name, r.pattern)] == ["column", "expert"]


def test_divide_passes_the_rule_of_expert_parallel_by() -> None:
    """A tensor-parallel group splits each expert and keeps all of them, whatever the plan says of another group."""
    from pegboard.divide import divide
    from pegboard.nn.dense import dense_causal_lm, dense_parallel_plan
    from pegboard.nn.parallel import Region
    from pegboard_sdk.toys.model import MIXTURE

    with torch.device("meta"):
        model = dense_causal_lm(MIXTURE, mixture=lambda layer: MoE(32, Experts(4, 32, 6), 2, renormalise=True))
    plan = (*reversed(expert_rules()), *dense_parallel_plan(MIXTURE))
    assert plan[0].style == "expert"
    division = divide(model, plan, Region(None, 1, 2))
    experts = [name for name in division.splits if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        split, shape = division.splits[name], tuple(model.get_parameter(name).shape)
        assert (split.whole, split.size) == (6, 3)
        assert shape == ((32, 3) if "down" in name else (3, 32))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sorted_rows_are_sorted_by_rank(ranks: int) -> None:
    """What an expert-parallel group would send: each rank's experts read one run of the sorted rows, and give one back."""
    from pegboard.nn.grouped import GATED, combine, grouped_linear, sort_by_expert

    experts, own = 8, 8 // ranks
    x = torch.randn(13, HIDDEN, generator=GENERATOR, dtype=torch.float64)
    gate_up = torch.randn(experts, 2 * INNER, HIDDEN, generator=GENERATOR, dtype=torch.float64)
    down = torch.randn(experts, HIDDEN, INNER, generator=GENERATOR, dtype=torch.float64)
    ids = torch.rand(13, experts, generator=GENERATOR).argsort(-1)[:, :K]
    weights = torch.rand(13, K, generator=GENERATOR, dtype=torch.float64)
    order, ends = sort_by_expert(ids, experts)
    counts = ends.view(ranks, own)[:, -1].diff(prepend=ends.new_zeros(1)).tolist()
    sent = x[order // K].split(counts)
    back = []
    for rank, rows in enumerate(sent):
        held = slice(rank * own, (rank + 1) * own)
        local = ends[held] - sum(counts[:rank])
        inner = GATED["silu"](grouped_linear(rows, gate_up[held], local))
        back.append(grouped_linear(inner, down[held], local))
    right = reference.OPS["moe"](x, gate_up, down, ids, weights)
    torch.testing.assert_close(combine(torch.cat(back), order, weights), right)
