from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pegboard.errors import ModelError
from pegboard.nn import Embedding, Head, Linear, dense_causal_lm
from pegboard_int8.layers import Int8Embedding, Int8Group, Int8Head, Int8Linear
from pegboard_int8.ops import int8_linear, quantise_
from pegboard_int8.options import Int8Options
from pegboard_int8.plugin import SPEC
from pegboard_int8.quantizer import Int8Quantizer
from pegboard_sdk.conformance import PluginSuite
from pegboard_sdk.toys.model import TINY, logits, random_model

TIED = {**TINY, "tie_word_embeddings": True}
IDS = torch.tensor([5, 250, 17, 17, 99, 3, 0, 140])


class TestInt8(PluginSuite):
    spec = SPEC


def quantizer(**options: Any) -> Int8Quantizer:
    return Int8Quantizer(Int8Options(**options))


def dequantised(module: Any) -> torch.Tensor:
    return module.weight.double() * module.scales.double()[:, None]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_rounding_is_to_the_nearest_step(rows: int, columns: int, seed: int, scale: float) -> None:
    source = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    weight, scales = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows)
    assert quantise_(weight, scales, source)
    error = (weight.double() * scales.double()[:, None] - source.double()).abs()
    assert (error <= scales.double()[:, None] * 0.5001).all()
    assert (weight.abs().amax(1) == 127).all()


def test_rows_of_zeros_and_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegboard_int8.ops._ROWS", 3)
    source = torch.randn(8, 4)
    source[5] = 0
    weight, scales = torch.empty(8, 4, dtype=torch.int8), torch.empty(8)
    assert quantise_(weight, scales, source)
    assert scales[5] == 1 and (weight[5] == 0).all()
    torch.testing.assert_close(weight * scales[:, None], source, rtol=0, atol=float(source.abs().max()) / 250)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_op_and_its_gradients(dtype: torch.dtype) -> None:
    x, bias = torch.randn(3, 7).to(dtype).requires_grad_(), torch.randn(5).to(dtype).requires_grad_()
    weight, scales = torch.randint(-127, 128, (5, 7), dtype=torch.int8), torch.rand(5)
    wide = weight.double() * scales.double()[:, None]
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for added in (bias, None):
        out = int8_linear(x, weight, scales, added)
        exact = F.linear(x.detach().double(), wide, None if added is None else added.detach().double())
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance * 50)
    got = torch.autograd.grad(int8_linear(x, weight, scales, bias).sum(), (x, bias))
    torch.testing.assert_close(got[0].double(), wide.sum(0).expand(3, 7), rtol=tolerance, atol=tolerance * 50)
    assert (got[1] == 3).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_what_is_swapped(tied: bool, head: bool) -> None:
    config = {**TINY, "tie_word_embeddings": tied}
    with torch.device("meta"):
        model = dense_causal_lm(config)
    plain = {n: type(m) for n, m in model.named_modules() if type(m) in (Linear, Head, Embedding)}
    names = quantizer(head=head).swap(model)
    kept = set() if head and tied else {"model.embed_tokens"} if head else {"model.embed_tokens", "lm_head"}
    assert set(names) == set(plain) - kept
    for name in names:
        assert type(model.get_submodule(name)) in (Int8Linear, Int8Head, Int8Embedding)
    assert type(model.head) is (Int8Head if head else Head)
    assert not [n for n, m in model.named_modules() if type(m) is Linear]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("phase", ["train", "decode"])
def test_a_model_computes_as_one_with_the_rounded_weights(tied: bool, head: bool, phase: Any) -> None:
    """The same family with its float64 parameters set to what int8 and scales say: equal to rounding of float64."""
    config = {**TINY, "tie_word_embeddings": tied}
    small = random_model(config=config, quantizer=quantizer(head=head), phase=phase)
    plain = random_model(config=config, phase="decode")
    before = logits(plain, IDS)
    with torch.no_grad():
        for name, module in small.model.named_modules():
            if isinstance(module, Int8Linear | Int8Embedding) or (isinstance(module, Int8Head) and not tied):
                plain.model.get_submodule(name).weight.copy_(dequantised(module))
    after, got = logits(plain, IDS), logits(small, IDS)
    torch.testing.assert_close(got.detach(), after, rtol=1e-6, atol=1e-6)
    assert 0 < (after - before).abs().max() < 0.1 * before.std(), "rounded, and not by much"
    groups = [m for m in small.model.modules() if isinstance(m, Int8Group)]
    assert len(groups) == 4 and all(group.fused for group in groups)
    # A fused group and its members one by one are the same.
    x = torch.randn(3, groups[0].members[0].in_features, dtype=torch.float64)
    apart = torch.cat([member(x) for member in groups[0].members], -1)
    torch.testing.assert_close(groups[0](x), apart, rtol=1e-12, atol=1e-12)
    groups[0].unfuse()
    assert torch.equal(groups[0](x), apart)
    assert groups[0].fuse() and torch.equal(groups[0].members[1](x), apart[:, 24:36])


def test_half_of_the_memory() -> None:
    full, small = (
        random_model(config=TIED, dtype="bfloat16", phase="decode", quantizer=q) for q in (None, quantizer())
    )
    assert small.weight_bytes < 0.7 * full.weight_bytes
    assert small.model.model.embed_tokens(IDS).dtype == torch.bfloat16


def test_biases_are_kept_and_fused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Parameter(torch.ones(1, dtype=torch.float64))
            self.a = Int8Linear("a", 4, 3, nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), self)
            self.b = Int8Linear("b", 4, 2, nn.Parameter(torch.tensor([4.0, 5.0], dtype=torch.float64)), self)
            self.both = Int8Group(self, ("a", "b"))

    pair = Pair()
    assert pair.both.fuse()
    for member in (pair.a, pair.b):
        member.load_weight("weight", torch.zeros(member.weight.shape))
    pair.b.load_weight("bias", torch.tensor([7.0, 8.0]))
    assert pair.both(torch.ones(1, 4, dtype=torch.float64)).tolist() == [[1.0, 2.0, 3.0, 7.0, 8.0]]
    pair.b.bias = None
    assert not pair.both.fuse()


def test_the_matrix_of_a_head_is_its_rounded_weight() -> None:
    for tied in (True, False):
        built = random_model(config={**TINY, "tie_word_embeddings": tied}, quantizer=quantizer())
        head = built.model.head
        source = built.model.model.embed_tokens if tied else head
        torch.testing.assert_close(head.matrix, dequantised(source), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_keeps_its_soft_cap(tied: bool) -> None:
    with torch.device("meta"):
        model = dense_causal_lm({**TINY, "tie_word_embeddings": tied})
    model.lm_head.softcap = 0.5
    quantizer().swap(model)
    assert model.head.softcap == 0.5
    head = Int8Head("lm_head", 3, 4, nn.Module(), None, 0.5)
    head.load_weight("weight", torch.randn(3, 4))
    hidden = torch.randn(2, 4)
    wanted = 0.5 * torch.tanh(hidden.double() @ dequantised(head).t() / 0.5)
    torch.testing.assert_close(head(hidden).double(), wanted, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_named() -> None:
    layer = Int8Linear("model.layers.3.mlp.up_proj", 4, 2, None, nn.Module())
    with pytest.raises(ModelError, match=r"model\.layers\.3\.mlp\.up_proj\.weight holds values that are not finite"):
        layer.load_weight("weight", torch.tensor([[1.0, 2.0, torch.nan, 0.0], [1.0, 1.0, 1.0, 1.0]]))
