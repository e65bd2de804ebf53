"""Rounding in training is torchao's, values and gradients; the integers are torchao's, and compressed-tensors reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pegboard.cli import run_cli
from pegboard.nn import Linear
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.weights import read_folder
from pegboard_int4.rounding import round_tokens, round_weight
from pegboard_int4.stored import parts_of, unpack
from pegboard_int4.training import RoundedLinear

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

IDS = [3, 14, 15, 92, 65, 35, 89, 79]


def torchao_layer(weight: torch.Tensor, bias: torch.Tensor | None, group: int) -> Any:
    """torchao's layer in training, prepared by its quantizer."""
    from torchao.quantization.qat import Int8DynActInt4WeightQATQuantizer

    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None))
    with torch.no_grad():
        model[0].weight.copy_(weight)
        if bias is not None:
            model[0].bias.copy_(bias)
    quantizer = Int8DynActInt4WeightQATQuantizer(groupsize=group)
    return quantizer, quantizer.prepare(model)


def our_layer(weight: torch.Tensor, bias: torch.Tensor | None, group: int) -> RoundedLinear:
    plain = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)  # type: ignore[union-attr]
    return RoundedLinear(plain, group=group, activations=True)


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_values_and_gradients_are_torchaos(group: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(7)
    weight, bias = torch.randn(48, 128, generator=draw) * scale, torch.randn(48, generator=draw)
    x = torch.randn(9, 128, generator=draw) * scale + 0.3
    upstream = torch.randn(9, 48, generator=draw)
    _, model = torchao_layer(weight, bias, group)
    theirs, mine = model[0], our_layer(weight, bias, group)
    assert torch.equal(theirs.activation_fake_quantizer(x), round_tokens(x)[0])
    assert torch.equal(theirs.weight_fake_quantizer(theirs.weight), round_weight(weight, group)[0])
    results = []
    for layer in (theirs, mine):
        given = x.clone().requires_grad_()
        out = layer(given)
        results.append((out, *torch.autograd.grad(out, (given, layer.weight, layer.bias), upstream)))
    for right, got in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5 * float(right.detach().abs().max()))
    zeros = int((results[0][2] == 0).sum())
    assert zeros == int((results[1][2] == 0).sum()) > 0, "the same weights are cut"


def test_an_adapter_is_rounded_with_its_weight() -> None:
    """As torchao would round the merged weight: gradients of both factors follow by the chain rule."""
    draw = torch.Generator().manual_seed(8)
    weight = torch.randn(48, 64, generator=draw)
    x, upstream = torch.randn(5, 64, generator=draw), torch.randn(5, 48, generator=draw)
    down, up = (torch.randn(s, generator=draw).mul_(0.2).requires_grad_() for s in ((4, 64), (48, 4)))
    total = torch.addmm(weight, up, down, alpha=0.5)
    _, model = torchao_layer(total.detach(), None, 32)
    theirs = model[0]
    inputs = theirs.activation_fake_quantizer(x)
    right = F.linear(inputs, theirs.weight_fake_quantizer(total))
    mine = our_layer(weight, None, 32).with_update(x, down, up, 0.5)
    torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-4)
    pairs = zip(
        torch.autograd.grad(mine, (down, up), upstream), torch.autograd.grad(right, (down, up), upstream), strict=True
    )
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_the_integers_are_torchaos() -> None:
    draw = torch.Generator().manual_seed(9)
    weight, x = torch.randn(48, 128, generator=draw), torch.randn(5, 128, generator=draw)
    quantizer, model = torchao_layer(weight, None, 32)
    converted = quantizer.convert(model)[0]
    parts = parts_of("layer", weight, 32)
    assert torch.equal(unpack(parts["layer.weight_packed"]), converted.weight)
    assert torch.equal(parts["layer.weight_scale"], converted.scales)
    torch.testing.assert_close(our_layer(weight, None, 32)(x), converted(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [32, 8])
def test_the_packing_is_that_of_compressed_tensors(group: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(10))
    parts = parts_of("layer", weight, group)
    words = parts["layer.weight_packed"]
    codes = unpack(words)
    assert torch.equal(pack_to_int32(codes, 4), words)
    assert torch.equal(unpack_from_int32(words, 4, weight.shape), codes)


@torch.no_grad()
def test_transformers_reads_what_is_written(tmp_path: Path, even_llama: Path) -> None:
    """Its logits, with inputs rounded in its own way, are ours; so are the weights that it dequantises to."""
    from transformers import AutoModelForCausalLM

    target = tmp_path / "int4"
    assert run_cli(["convert", str(even_llama), str(target), "--to", "hf", "--quantizer", "int4"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    registry = Registry.discover()
    built = open_any(registry, str(target)).build(registry, platform="cpu", dtype="float32")
    right = theirs(torch.tensor([IDS])).logits[0]
    mine = built.model.head(built.model(torch.tensor(IDS), built.context([len(IDS)], torch.arange(len(IDS)))))
    torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-3)
    assert run_cli(["convert", str(target), str(tmp_path / "full"), "--to", "hf"]) == 0
    for name, lazy in read_folder(tmp_path / "full").items():
        if name.endswith("up_proj.weight"):
            original = read_folder(even_llama)[name].load()
            assert torch.equal(lazy.load(), round_weight(original, 32)[0])
