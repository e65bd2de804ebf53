from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegboard.nn import Experts
from pegboard_nf4.experts import Nf4Experts
from pegboard_nf4.layers import Nf4Linear
from pegboard_nf4.matrix import quantise
from pegboard_nf4.options import Nf4Options
from pegboard_nf4.quantizer import Nf4Quantizer
from pegboard_sdk.toys.model import MIXTURE, logits, random_model

IDS = torch.arange(1, 12)


def mixture(phase: Any = "decode", **options: Any) -> tuple[Any, Experts]:
    built = random_model(config=MIXTURE, phase=phase, quantizer=Nf4Quantizer(Nf4Options(**options)))
    experts = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
    assert isinstance(experts, Experts) and isinstance(experts.gate_up, Nf4Experts)
    return built, experts


def widened(built: Any) -> Any:
    """The same model of the dequantised weights, in full precision."""
    plain = random_model(config=MIXTURE, phase="decode")
    for name, module in built.model.named_modules():
        if isinstance(module, Nf4Linear):
            weight = plain.model.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            weight.data.copy_(module.matrix.dequantise(torch.float64))
    return plain


@pytest.mark.parametrize("double", [True, False])
def test_experts_lie_together_and_compute_what_they_do_alone(double: bool) -> None:
    built, experts = mixture(double=double)
    stored, third = experts.gate_up._tensors, experts.get_submodule("3").up_proj
    assert stored["weight"].shape == (4, 2 * 512) and stored["scales"].shape == (4, 2 * 16)
    assert stored["weight"][3, 512:].data_ptr() == third.weight.data_ptr()
    if double:
        assert stored["nested"].shape == stored["offset"].shape == (4, 2)
        assert stored["offset"][3, 1].data_ptr() == third.offset.data_ptr()
    else:
        assert stored["nested"] is stored["offset"] is None
    with torch.no_grad():
        together = logits(built, IDS)
        torch.testing.assert_close(together, logits(widened(built), IDS))
        one = logits(built, IDS[:1])
        experts.gate_up.unfuse()
        torch.testing.assert_close(logits(built, IDS), together)
        torch.testing.assert_close(logits(built, IDS[:1]), one)
        experts.gate_up.fuse()
        assert torch.equal(logits(built, IDS), together)
    torch.testing.assert_close(logits(built, IDS).detach(), together)


@pytest.mark.parametrize("double", [True, False])
def test_gradients_by_the_input(double: bool) -> None:
    built, experts = mixture(double=double)
    x = torch.randn(7, 32, dtype=torch.float64).requires_grad_()
    ids = torch.rand(7, 3).argsort(-1)[:, :2]  # the last expert has no rows
    weights = torch.rand(7, 2, dtype=torch.float64).requires_grad_()
    plain = widened(built).model.model.layers[1].mlp.experts
    upstream = torch.randn(7, 32, dtype=torch.float64)
    results = []
    for each in (experts, plain):
        out = each(x, ids, weights)
        results.append([out, *torch.autograd.grad(out, (x, weights), upstream)])
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right)


def test_a_matrix_of_another_form_than_the_first() -> None:
    built, experts = mixture()
    with torch.no_grad():
        before = logits(built, IDS)
        layer = experts.get_submodule("2").gate_proj
        assert isinstance(layer, Nf4Linear)
        matrix = layer.matrix
        layer._hold(type(matrix)(matrix.shape, matrix.packed.clone(), matrix.plain_scales()))
        experts.gate_up._checked = False  # as after loading
        torch.testing.assert_close(logits(built, IDS), before)
        assert not experts.gate_up.fused and experts.down.fused


def test_weights_go_where_the_earlier_ones_are() -> None:
    _, experts = mixture()
    layer = experts.get_submodule("1").down_proj
    assert isinstance(layer, Nf4Linear)
    places = [
        tensor.data_ptr() for tensor in (layer.weight, layer.scales, layer.nested, layer.offset) if tensor is not None
    ]
    new = torch.randn(32, 32)
    layer.load_weight("weight", new)
    held = [tensor for tensor in (layer.weight, layer.scales, layer.nested, layer.offset) if tensor is not None]
    assert [tensor.data_ptr() for tensor in held] == places
    right = quantise(new, double=True)
    assert torch.equal(layer.matrix.dequantise(torch.float32), right.dequantise(torch.float32))
    assert torch.equal(experts.down._tensors["weight"][1], right.packed)


def test_matrices_whose_blocks_are_not_full_stay_apart() -> None:
    config = {**MIXTURE, "moe_intermediate_size": 31}
    built = random_model(config=config, phase="decode", quantizer=Nf4Quantizer())
    experts = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
    assert not experts.gate_up.fused and not experts.down.fused
    with torch.no_grad():
        assert logits(built, IDS).isfinite().all()


def test_restored_experts_are_plain() -> None:
    quantizer = Nf4Quantizer()
    built = random_model(config=MIXTURE, phase="decode", quantizer=quantizer)
    with torch.no_grad():
        before = logits(built, IDS)
        quantizer.restore(built.model)
        built.model.fuse()
        experts: Any = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
        assert isinstance(experts.gate_up.stacked(), Tensor)
        torch.testing.assert_close(logits(built, IDS), before)
