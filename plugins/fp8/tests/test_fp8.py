from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError, ModelError
from pegboard.nn import Experts
from pegboard_fp8.layers import Fp8Experts, Fp8Linear
from pegboard_fp8.ops import E4M3, dequantise, quantise
from pegboard_fp8.options import Fp8Options
from pegboard_fp8.quantizer import Fp8Quantizer
from pegboard_fp8.stored import SCALE, StoredWeight, read_settings
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_sdk.toys.model import MIXTURE, Held, logits, random_model

IDS = torch.arange(1, 12)
BLOCKS = [None, 8, 16]


def drawn(rows: int, columns: int) -> Tensor:
    """Values of many magnitudes, one block of zeros among them."""
    generator = torch.Generator().manual_seed(rows)
    found = torch.randn(rows, columns, generator=generator) * torch.logspace(-4, 2, columns)
    found[:8, :8] = 0
    return found


@pytest.mark.parametrize("block", BLOCKS)
def test_each_weight_becomes_the_nearest_value_there_is(block: int | None) -> None:
    weight = drawn(20, 35)
    codes, scales = quantise(weight, block)
    values = torch.arange(256, dtype=torch.uint8).view(E4M3).double()
    values = values[values.isfinite()]
    size = block or 64
    for row in range(0, 20, size):
        for column in range(0, 35, size):
            part = weight[row : row + size, column : column + size].double()
            scale = scales[row // size, column // size].double()
            largest = part.abs().max()
            assert float(scale) == pytest.approx(float(largest) / 448 if largest else 1.0, rel=1e-6)
            mine = codes[row : row + size, column : column + size].double() * scale
            nearest = (part[..., None] - values * scale).abs().amin(-1)
            torch.testing.assert_close((part - mine).abs(), nearest, rtol=1e-5, atol=float(scale) * 1e-6)
    torch.testing.assert_close(
        dequantise(codes, scales, block, torch.float64)[0, 20],
        codes[0, 20].double() * scales[0, 20 // size].double(),
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_a_mixture_in_8_bits(block: int | None) -> None:
    built = random_model(config=MIXTURE, phase="decode", quantizer=Fp8Quantizer(Fp8Options(block=block)))
    plain = random_model(config=MIXTURE, phase="decode")
    with torch.no_grad():
        before = logits(plain, IDS)
        for name, module in built.model.named_modules():
            if isinstance(module, Fp8Linear):
                weight = plain.model.get_submodule(name).weight
                assert isinstance(weight, nn.Parameter)
                weight.copy_(dequantise(module.weight, module.scales, block, torch.float64))
        experts = built.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
        assert isinstance(experts, Experts) and isinstance(experts.gate_up, Fp8Experts)
        stored = experts.gate_up._tensors
        assert stored["weight"].shape == (4, 64, 32) and stored["weight"].dtype == E4M3
        assert stored["weight"][3, 32:].data_ptr() == experts.get_submodule("3").up_proj.weight.data_ptr()
        for ids in (IDS, IDS[:1]):
            torch.testing.assert_close(logits(built, ids), logits(plain, ids))
        together = logits(built, IDS)
        experts.gate_up.unfuse()
        torch.testing.assert_close(logits(built, IDS), together)
        # A router that sees other values may choose another expert.
        assert 0 < float((together - before).norm() / before.norm()) < 0.3


def test_adapters_beside_them_learn() -> None:
    options = LoraOptions(rank=2, targets=["gate_proj", "down_proj"])
    quantizer = Fp8Quantizer(Fp8Options(block=16))
    built = random_model(config=MIXTURE, adapter=LoraAdapter(options), quantizer=quantizer)
    logits(built, IDS).sum().backward()
    trained = [p for n, p in built.model.named_parameters() if "lora_b" in n and ".experts." in n]
    assert len(trained) == 8 and all(p.grad is not None for p in trained)
    assert any(bool(p.grad.any()) for p in trained if p.grad is not None)


def made(block: int | None, bias: bool = False) -> Fp8Linear:
    model = nn.Module()
    model.norm = nn.Linear(1, 1)
    held = nn.Parameter(torch.randn(32)) if bias else None
    layer = Fp8Linear("layer", 48, 32, held, model, block=block)
    layer.load_weight("weight", torch.randn(32, 48))
    return layer


@pytest.mark.parametrize("block", BLOCKS)
def test_the_product_and_its_gradient(block: int | None) -> None:
    layer = made(block, bias=True)
    x = torch.randn(5, 48, requires_grad=True)
    weight = dequantise(layer.weight, layer.scales, block, torch.float32)
    out, wanted = layer(x), torch.nn.functional.linear(x, weight, layer.bias)
    torch.testing.assert_close(out, wanted)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, [x, layer.bias], upstream), torch.autograd.grad(wanted, [x, layer.bias], upstream)
    )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("style", ["column", "row"])
def test_the_parts_of_a_layer_are_the_layer(block: int | None, style: Any) -> None:
    layer, x = made(block, bias=style == "column"), torch.randn(5, 48)
    if block == 16 and style == "row":
        with pytest.raises(
            ConfigError, match=r"layer: 48 inputs do not divide into 2 equal parts of whole blocks of 16"
        ):
            layer.part(style, 0, 2)
        return
    parts = [layer.part(style, index, 2) for index in range(2)]
    if style == "column":
        found = torch.cat([part(x) for part in parts], -1)
    else:
        found = parts[0](x[:, :24]) + parts[1](x[:, 24:])
    torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize("block", [None, 16])
def test_what_is_written_is_read_without_rounding(block: int | None) -> None:
    quantizer = Fp8Quantizer(Fp8Options(block=block))
    weight = drawn(20, 35)
    written = quantizer.store("a.b", weight, torch.bfloat16)
    tensors = {name: Held(name, tensor) for name, tensor in written.items()}
    settings = quantizer.settings(["lm_head"], torch.bfloat16)
    again = Fp8Quantizer.stored(settings, tensors)
    joined = again.join(tensors)
    assert list(joined) == ["a.b.weight"] and again._only == {"a.b"}
    stored = joined["a.b.weight"]
    assert isinstance(stored, StoredWeight) and stored.shape == (20, 35)
    codes, scales = quantise(weight, block)
    assert torch.equal(stored.load(), dequantise(codes, scales, block, torch.bfloat16))
    layer = Fp8Linear("a.b", 35, 20, None, nn.Module(), block=block)
    layer.load_parts("weight", {part: lazy.load() for part, lazy in stored.parts.items()})
    assert torch.equal(layer.weight.view(torch.uint8), codes.view(torch.uint8)) and torch.equal(layer.scales, scales)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.update({"a.weight": p["a.weight"].float()}), "a.weight do not fit together: weight torch.float32"),
        (lambda p: p.update({f"a.{SCALE}": p[f"a.{SCALE}"][:1]}), r"scale_inv torch.float32 \[1, 3\], blocks of 16"),
        (lambda p: p.update({f"a.{SCALE}": p[f"a.{SCALE}"].int()}), "scale_inv torch.int32"),
        (lambda p: p.pop("a.weight"), "a.weight is missing"),
    ],
)
def test_what_is_damaged_is_named(damage: Callable[[dict[str, Tensor]], None], message: str) -> None:
    quantizer = Fp8Quantizer(Fp8Options(block=16))
    parts = dict(quantizer.store("a", drawn(20, 35), torch.bfloat16))
    damage(parts)
    with pytest.raises(ModelError, match=message):
        quantizer.join({name: Held(name, tensor) for name, tensor in parts.items()})["a.weight"].load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_block_size": [128, 64]}, r"weight_block_size=\[128, 64\]"),
        ({"weight_block_size": "128"}, "weight_block_size='128'"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme='static'"),
    ],
)
def test_settings_that_are_not_read_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_settings(settings)


def test_weights_that_are_not_finite_are_named() -> None:
    layer = made(16)
    with pytest.raises(ModelError, match=r"layer\.weight holds values that are not finite"):
        layer.load_weight("weight", torch.full((32, 48), float("inf")))


def test_restored_layers_are_plain() -> None:
    quantizer = Fp8Quantizer(Fp8Options(block=16, skip=["q_proj"]))
    built = random_model(config=MIXTURE, phase="decode", quantizer=quantizer)
    assert not isinstance(built.model.get_submodule("model.layers.0.self_attn.q_proj"), Fp8Linear)
    with torch.no_grad():
        before = logits(built, IDS)
        quantizer.restore(built.model)
        assert not any(isinstance(module, Fp8Linear) for module in built.model.modules())
        built.model.fuse()
        torch.testing.assert_close(logits(built, IDS), before)
