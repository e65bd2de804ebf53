from __future__ import annotations

import torch
from torch import nn

from pegboard.nn import Experts
from pegboard_int8.layers import Int8Experts, Int8Linear
from pegboard_int8.options import Int8Options
from pegboard_int8.quantizer import Int8Quantizer
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_sdk.toys.model import MIXTURE, logits, random_model

IDS = torch.arange(1, 12)


def test_experts_lie_together_and_compute_what_their_values_say() -> None:
    built = random_model(config=MIXTURE, phase="decode", quantizer=Int8Quantizer(Int8Options(head=False)))
    plain = random_model(config=MIXTURE, phase="decode")
    for name, module in built.model.named_modules():
        if isinstance(module, Int8Linear):
            weight = plain.model.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            weight.data.copy_(module.weight.double() * module.scales[:, None].double())
    experts = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
    assert isinstance(experts, Experts) and isinstance(experts.gate_up, Int8Experts)
    stored = experts.gate_up._tensors
    assert stored["weight"].shape == (4, 64, 32) and stored["scales"].shape == (4, 64)
    assert stored["weight"][3, 32:].data_ptr() == experts.get_submodule("3").up_proj.weight.data_ptr()
    router = built.model.model.layers[1].mlp.gate.weight  # type: ignore[union-attr]
    assert router.dtype == torch.float64
    with torch.no_grad():
        for ids in (IDS, IDS[:1]):
            torch.testing.assert_close(logits(built, ids), logits(plain, ids))
        together = logits(built, IDS)
        experts.gate_up.unfuse()
        torch.testing.assert_close(logits(built, IDS), together)


def test_adapters_beside_them_learn() -> None:
    options = LoraOptions(rank=2, targets=["gate_proj", "down_proj"])
    built = random_model(config=MIXTURE, adapter=LoraAdapter(options), quantizer=Int8Quantizer(Int8Options()))
    logits(built, IDS).sum().backward()
    trained = [p for n, p in built.model.named_parameters() if "lora_b" in n and ".experts." in n]
    assert len(trained) == 8 and all(p.grad is not None for p in trained)
    assert any(bool(p.grad.any()) for p in trained if p.grad is not None)
