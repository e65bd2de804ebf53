from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pegboard.errors import ConfigError, ModelError
from pegboard.nn import Embedding, Head, Linear, dense_causal_lm
from pegboard.nn.layer import bind_kernels
from pegboard.ops import kernel_table
from pegboard_nf4.layers import Nf4Group, Nf4Linear
from pegboard_nf4.matrix import BLOCK, Nf4Matrix, nf4_table, quantise
from pegboard_nf4.ops import nf4_linear
from pegboard_nf4.options import Nf4Options
from pegboard_nf4.plugin import SPEC
from pegboard_nf4.quantizer import Nf4Quantizer
from pegboard_sdk.conformance import PluginSuite
from pegboard_sdk.toys.model import TINY, logits, random_model

IDS = torch.tensor([5, 250, 17, 17, 99, 3, 0, 140])
WIDE = {**TINY, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


class TestNf4(PluginSuite):
    spec = SPEC


def quantizer(**options: Any) -> Nf4Quantizer:
    return Nf4Quantizer(Nf4Options(**options))


def by_hand(matrix: Nf4Matrix) -> torch.Tensor:
    """Dequantise value by value in float64."""
    scales = matrix.plain_scales().tolist()
    codes = [code for byte in matrix.packed.tolist() for code in (byte >> 4, byte & 15)]
    rows, columns = matrix.shape
    values = [nf4_table().values[codes[i]].item() * scales[i // BLOCK] for i in range(rows * columns)]
    return torch.tensor(values, dtype=torch.float64).view(rows, columns)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 90), double=st.booleans(), seed=st.integers(0, 99))
def test_rounding_packing_and_reading_back(rows: int, columns: int, double: bool, seed: int) -> None:
    source = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    matrix = quantise(source, double=double)
    assert (matrix.nested is not None) is double
    assert (matrix.scales.dtype == torch.uint8) is double
    exact = by_hand(matrix)
    torch.testing.assert_close(matrix.dequantise(torch.float64), exact, rtol=1e-6, atol=1e-12)
    flat, scales = source.double().view(-1), matrix.plain_scales().double().repeat_interleave(BLOCK)[: source.numel()]
    # Half of the widest gap of the table, and what the scale's own rounding takes.
    slack = 0.005 if double else 1e-6
    assert ((exact.view(-1) - flat).abs() <= scales * (0.152 + slack) + slack * flat.abs().max()).all()
    half = matrix.dequantise(torch.bfloat16)
    assert torch.equal(half, matrix.dequantise(torch.float32).bfloat16())
    unit = matrix.unit
    if rows > unit:
        assert torch.equal(matrix.rows(unit, rows, torch.float32), matrix.dequantise(torch.float32)[unit:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 1 << 23])
def test_the_product_and_its_gradients(dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegboard_nf4.ops._PIECE", piece)
    matrix = quantise(torch.randn(20, 48), double=True)
    wide = by_hand(matrix)
    x, bias = torch.randn(5, 48).to(dtype).requires_grad_(), torch.randn(20).to(dtype).requires_grad_()
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    out = nf4_linear(x, matrix, bias, F.linear)
    exact = F.linear(x.detach().double(), wide, bias.detach().double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance * 20)
    upstream = torch.randn(5, 20).to(dtype)
    d_x, d_bias = torch.autograd.grad(out, (x, bias), upstream)
    torch.testing.assert_close(d_x.double(), upstream.double() @ wide, rtol=tolerance, atol=tolerance * 20)
    torch.testing.assert_close(d_bias.double(), upstream.double().sum(0), rtol=tolerance, atol=tolerance * 20)


def test_nothing_is_kept_for_the_backward_pass() -> None:
    """Whatever autograd saves for a layer is counted: not even the input, as the weight takes no gradient."""
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    matrix = quantise(torch.randn(64, 64), double=True)
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = nf4_linear(x, matrix, None, F.linear)
    assert not kept
    held = {name: getattr(out.grad_fn, name) for name in ("weight", "linear")}
    assert held == {"weight": matrix, "linear": F.linear}


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_swapped(tied: bool) -> None:
    with torch.device("meta"):
        model = dense_causal_lm({**TINY, "tie_word_embeddings": tied})
    linear = {name for name, module in model.named_modules() if type(module) is Linear}
    names = quantizer(skip=["down_proj", "model.layers.0.self_attn.q_proj"]).swap(model)
    kept = {name for name in linear if name.endswith("down_proj")} | {"model.layers.0.self_attn.q_proj"}
    assert set(names) == linear - kept
    assert all(type(model.get_submodule(name)) is Nf4Linear for name in names)
    assert all(type(model.get_submodule(name)) is Linear for name in kept)
    assert type(model.head) is Head and type(model.model.embed_tokens) is Embedding


@pytest.mark.parametrize("config", [TINY, WIDE], ids=["cut blocks", "whole blocks"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("phase", ["train", "decode"])
def test_a_model_computes_as_one_with_the_rounded_weights(config: Any, double: bool, phase: Any) -> None:
    """The same family with its float64 parameters set to what the codes say: equal to rounding."""
    made = quantizer(double=double)
    small = random_model(config=config, quantizer=made, phase=phase)
    plain = random_model(config=config, phase="decode")
    before = logits(plain, IDS)
    with torch.no_grad():
        for name, module in small.model.named_modules():
            if isinstance(module, Nf4Linear):
                plain.model.get_submodule(name).weight.copy_(by_hand(module.matrix))
    after, got = logits(plain, IDS), logits(small, IDS)
    torch.testing.assert_close(got.detach(), after, rtol=1e-5, atol=1e-5)
    assert 0 < (after - before).std() < 0.5 * before.std(), "rounded, and not by much"
    groups = [module for module in small.model.modules() if isinstance(module, Nf4Group)]
    assert len(groups) == 4 and any(group.fused for group in groups)
    x = torch.randn(3, config["hidden_size"], dtype=torch.float64)
    for group in groups:
        apart = torch.cat([member(x) for member in group.members], -1)
        torch.testing.assert_close(group(x), apart, rtol=1e-12, atol=1e-12)
    made.restore(small.model)
    assert not [m for m in small.model.modules() if isinstance(m, Nf4Linear | Nf4Group)]
    torch.testing.assert_close(logits(small, IDS).detach(), after, rtol=1e-5, atol=1e-5)


def test_four_bits_a_weight() -> None:
    with torch.device("meta"):
        layer = Nf4Linear("a", 512, 512, None, nn.Module(), double=True)
    layer.load_weight("weight", torch.randn(512, 512))
    bits = 8 * sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers()) / 512**2
    assert 4.125 < bits < 4.13


def holder(**layers: Nf4Linear) -> nn.Module:
    model = nn.Module()
    model.norm = nn.Parameter(torch.ones(1, dtype=torch.float64))
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


def test_biases_are_kept_and_fused() -> None:
    model = holder()
    for name, rows in (("a", 3), ("b", 2)):
        bias = nn.Parameter(torch.arange(rows, dtype=torch.float64) + rows)
        setattr(model, name, Nf4Linear(name, 64, rows, bias, model, double=True))
    model.both = Nf4Group(model, ("a", "b"))
    assert model.both.fuse()
    for layer in (model.a, model.b):
        layer.load_weight("weight", torch.zeros(layer.out_features, 64))
    model.b.load_weight("bias", torch.tensor([7.0, 8.0]))
    assert model.both(torch.ones(1, 64, dtype=torch.float64)).tolist() == [[3.0, 4.0, 5.0, 7.0, 8.0]]
    model.b.bias = None
    assert not model.both.fuse()


@pytest.mark.parametrize("style", ["column", "row"])
def test_the_parts_of_a_layer_are_the_layer(style: Any) -> None:
    layer = Nf4Linear("up_proj", 256, 32, nn.Parameter(torch.randn(32, dtype=torch.float64)), holder(), double=True)
    layer.load_weight("weight", torch.randn(32, 256))
    x = torch.randn(3, 256, dtype=torch.float64)
    parts = [layer.part(style, index, 4) for index in range(4)]
    if style == "column":
        got = torch.cat([part(x) for part in parts], -1)
    else:
        sums = [part(piece) for part, piece in zip(parts, x.split(64, -1), strict=True)]
        got = torch.stack(sums).sum(0) + layer.bias
    torch.testing.assert_close(got, layer(x), rtol=1e-10, atol=1e-10)


def test_an_uneven_split_is_refused_by_name() -> None:
    layer = Nf4Linear("layers.0.k_proj", 96, 6, None, holder(), double=True)
    layer.load_weight("weight", torch.randn(6, 96))
    assert layer.part("column", 1, 3).out_features == 2
    for style, count in (("column", 4), ("column", 6), ("row", 2), ("row", 3)):
        with pytest.raises(ConfigError, match=r"layers\.0\.k_proj: .* do not divide into"):
            layer.part(style, 0, count)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_named() -> None:
    layer = Nf4Linear("model.layers.3.mlp.up_proj", 4, 2, None, nn.Module(), double=True)
    with pytest.raises(ModelError, match=r"model\.layers\.3\.mlp\.up_proj\.weight holds values that are not finite"):
        layer.load_weight("weight", torch.tensor([[1.0, 2.0, torch.nan, 0.0], [1.0, 1.0, 1.0, 1.0]]))


def test_whole_weights_for_adapters_where_a_platform_gives_them() -> None:
    model = random_model(config=WIDE, quantizer=quantizer()).model
    layer: Any = model.model.layers[0]
    assert layer.mlp.down_proj.dense is None and layer.mlp.gate_up._dense() is None
    bind_kernels(model, kernel_table({"nf4_values": lambda matrix, dtype: matrix.dequantise(dtype)}))
    members = [layer.mlp.gate_proj.matrix, layer.mlp.up_proj.matrix]
    expected = torch.cat([matrix.dequantise(torch.float64) for matrix in members])
    assert torch.equal(layer.mlp.gate_up._dense()(torch.float64), expected)
    assert torch.equal(layer.mlp.up_proj.dense(torch.float64), members[1].dequantise(torch.float64))
    layer.mlp.up_proj.bias = nn.Parameter(torch.zeros(64), requires_grad=False)
    assert layer.mlp.gate_up._dense() is None
