from __future__ import annotations

import pytest
import torch
from torch import nn

from pegboard.nn import Experts
from pegboard_int4.experts import Int4Experts
from pegboard_int4.layers import Int4Linear
from pegboard_int4.options import Int4Options
from pegboard_int4.quantizer import Int4Quantizer
from pegboard_sdk.toys.model import MIXTURE, logits, random_model

IDS = torch.arange(1, 12)


@pytest.mark.parametrize("activations", [True, False])
def test_experts_lie_together_and_compute_what_they_do_alone(activations: bool) -> None:
    quantizer = Int4Quantizer(Int4Options(group=8, activations=activations))
    built = random_model(config=MIXTURE, phase="decode", quantizer=quantizer)
    experts = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
    assert isinstance(experts, Experts) and isinstance(experts.gate_up, Int4Experts)
    stored = experts.gate_up._tensors
    assert stored["weight"].shape == (4, 64, 4) and stored["scales"].shape == (4, 64, 4)
    assert stored["weight"][3, 32:].data_ptr() == experts.get_submodule("3").up_proj.weight.data_ptr()
    with torch.no_grad():
        together = logits(built, IDS)
        if not activations:
            plain = random_model(config=MIXTURE, phase="decode")
            for name, module in built.model.named_modules():
                if isinstance(module, Int4Linear):
                    weight = plain.model.get_submodule(name).weight
                    assert isinstance(weight, nn.Parameter)
                    weight.data.copy_(module.dequantised(torch.float64))
            torch.testing.assert_close(logits(plain, IDS), together)
        experts.gate_up.unfuse()
        torch.testing.assert_close(logits(built, IDS), together)
    torch.testing.assert_close(logits(built, IDS).detach(), together)


def test_restored_experts_are_plain() -> None:
    quantizer = Int4Quantizer(Int4Options(group=8, activations=False))
    built = random_model(config=MIXTURE, phase="decode", quantizer=quantizer)
    with torch.no_grad():
        before = logits(built, IDS)
        quantizer.restore(built.model)
        built.model.fuse()
        experts = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
        assert experts.gate_up.stacked() is not None
        torch.testing.assert_close(logits(built, IDS), before)
