from __future__ import annotations

import pytest
import torch
from torch import nn

from pegboard.nn import Experts, Linear, MoE
from pegboard.nn.layer import Layer, alike


class Plain(nn.Module):
    """Torch's own walk, over the children of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._modules = layer._modules


def tree() -> Layer:
    """A mixture with a child that is there twice, and a place for one that is not."""
    made = MoE(4, Experts(3, 4, 2), 2, renormalise=True, shared=2)
    made.register_module("again", made.shared_expert)
    made.register_module("none", None)
    return made


@pytest.mark.parametrize("remove_duplicate", [True, False])
@pytest.mark.parametrize("prefix", ["", "model.mlp"])
def test_the_walk_over_modules_is_torchs(remove_duplicate: bool, prefix: str) -> None:
    layer = tree()
    found = list(layer.named_modules(prefix=prefix, remove_duplicate=remove_duplicate))
    right = list(Plain(layer).named_modules(prefix=prefix, remove_duplicate=remove_duplicate))
    assert found[0] == (prefix, layer)
    assert found[1:] == right[1:]
    assert list(layer.modules()) == [layer, *list(Plain(layer).modules())[1:]]


def test_the_walk_passes_by_what_is_known() -> None:
    layer = tree()
    known = {layer.get_submodule("experts.1")}
    names = [name for name, _ in layer.named_modules(known)]
    assert "experts.0.up_proj" in names and not any(name.startswith("experts.1") for name in names)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_modules_alike_share_nothing(device: str) -> None:
    with torch.device(device):
        first = nn.Sequential(Linear(3, 2, bias=True), Linear(2, 3))
        first[0].weight.requires_grad_(False)
        made = alike(first)()
    assert [name for name, _ in made.named_modules()] == [name for name, _ in first.named_modules()]
    for (name, ours), (other, theirs) in zip(made.named_parameters(), first.named_parameters(), strict=True):
        assert (name, ours.shape, ours.dtype, ours.device) == (other, theirs.shape, theirs.dtype, theirs.device)
        assert ours is not theirs and ours.requires_grad == theirs.requires_grad
        assert device == "meta" or ours.data_ptr() != theirs.data_ptr()
    made[0].register_forward_hook(lambda *_: None)
    made[0].weight = nn.Parameter(torch.ones(2, 3))
    assert not first[0]._forward_hooks and first[0].weight.device.type == device
    assert made[1].bias is None and made[1].extra_repr() == first[1].extra_repr()


def test_each_expert_has_its_own_layers() -> None:
    with torch.device("meta"):
        experts = Experts(4, 6, 2, names=("w1", "w3", "w2"))
    parameters = list(experts.named_parameters())
    assert [name for name, _ in parameters[:3]] == ["0.w1.weight", "0.w3.weight", "0.w2.weight"]
    assert len({id(parameter) for _, parameter in parameters}) == len(parameters) == 12
    experts.gate_up._look()
    experts.get_submodule("2").w1 = Linear(6, 2)
    assert experts.gate_up.stale, "an expert made like another one tells the same owner"
