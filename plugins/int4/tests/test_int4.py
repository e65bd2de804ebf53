from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pegboard.errors import ConfigError, ModelError
from pegboard.nn import Linear
from pegboard_int4.layers import Int4Linear
from pegboard_int4.options import Int4Options
from pegboard_int4.plugin import INT4
from pegboard_int4.quantizer import Int4Quantizer
from pegboard_int4.rounding import round_tokens, round_weight, weight_values
from pegboard_int4.stored import StoredWeight, dequantise, join, pack, parts_of, unpack
from pegboard_sdk.conformance import PluginSuite
from pegboard_sdk.toys.model import Held, logits, random_model

IDS = torch.tensor([5, 250, 17, 17, 99, 3, 0, 140])
Parts = dict[str, torch.Tensor]


class TestInt4(PluginSuite):
    spec = INT4


def layer(rows: int, columns: int, *, group: int = 8, activations: bool = True, bias: bool = False) -> Int4Linear:
    model = nn.Module()
    model.norm = nn.Parameter(torch.ones(1, dtype=torch.float64))
    added = nn.Parameter(torch.randn(rows, dtype=torch.float64)) if bias else None
    made = Int4Linear("layers.0.up_proj", columns, rows, added, model, group=group, activations=activations)
    made.load_weight("weight", torch.randn(rows, columns))
    return made


def test_packing_by_hand() -> None:
    codes = torch.tensor([[-8, -7, 0, 1, 7, 6, -1, 7], [7] * 8], dtype=torch.int8)
    assert pack(codes).tolist() == [[int.from_bytes(bytes([0x10, 0x98, 0xEF, 0xF7]), "little", signed=True)], [-1]]
    assert torch.equal(unpack(pack(codes)), codes)
    many = torch.randint(-8, 8, (5, 64), dtype=torch.int8)
    scales = torch.rand(5, 4)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantise(pack(many), scales, dtype), weight_values(many, scales, dtype))
    assert torch.equal(unpack(pack(many)), many) and unpack(pack(many)).dtype == torch.int8


@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_product_and_its_gradient(activations: bool, dtype: torch.dtype) -> None:
    made = layer(12, 32, activations=activations, bias=True)
    x = torch.randn(4, 32).to(dtype).requires_grad_()
    inputs, inside = round_tokens(x.detach()) if activations else (x.detach(), torch.ones_like(x, dtype=torch.bool))
    weight = made.dequantised(torch.float64)
    if made.bias is not None and dtype == torch.bfloat16:
        made.bias = nn.Parameter(made.bias.detach().to(dtype))
    out = made(x)
    tolerance = 1e-6 if dtype == torch.float64 else 3e-2
    exact = F.linear(inputs.double(), weight, made.bias.detach().double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.detach().double(), exact, rtol=tolerance, atol=tolerance * 10)
    upstream = torch.randn(4, 12).to(dtype)
    (d_x,) = torch.autograd.grad(out, x, upstream)
    torch.testing.assert_close(d_x.double(), upstream.double() @ weight * inside, rtol=tolerance, atol=tolerance * 10)


def test_a_model_in_4_bits() -> None:
    made = Int4Quantizer(Int4Options(group=8, activations=False, skip=["down_proj"]))
    small, plain = random_model(quantizer=made, phase="decode"), random_model(phase="decode")
    with torch.no_grad():
        for name, module in small.model.named_modules():
            assert type(module) is not Linear or name.endswith("down_proj")
            if isinstance(module, Int4Linear):
                weight = plain.model.get_submodule(name).weight
                weight.copy_(round_weight(weight, 8)[0])
    torch.testing.assert_close(logits(small, IDS), logits(plain, IDS), rtol=1e-5, atol=1e-5)
    made.restore(small.model)
    assert not [m for m in small.model.modules() if isinstance(m, Int4Linear)]
    torch.testing.assert_close(logits(small, IDS), logits(plain, IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", ["column", "row"])
def test_the_parts_of_a_layer_are_the_layer(style: Any) -> None:
    made = layer(12, 32, activations=style == "column", bias=True)
    x = torch.randn(3, 32, dtype=torch.float64)
    parts = [made.part(style, index, 2) for index in range(2)]
    if style == "column":
        got = torch.cat([part(x) for part in parts], -1)
    else:
        got = sum(part(piece) for part, piece in zip(parts, x.chunk(2, -1), strict=True)) + made.bias
    torch.testing.assert_close(got, made(x), rtol=1e-10, atol=1e-10)


def test_an_uneven_split_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.up_proj: 12 outputs do not divide into 5 equal parts"):
        layer(12, 32).part("column", 0, 5)
    with pytest.raises(ConfigError, match=r"32 inputs do not divide into 8 equal parts of whole groups of 8"):
        layer(12, 32, activations=False).part("row", 0, 8)
    with pytest.raises(ConfigError, match="rounded over the whole token"):
        layer(12, 32).part("row", 0, 2)


def held(tensors: Parts) -> dict[str, Any]:
    return {name: Held(name, tensor) for name, tensor in tensors.items()}


def test_what_is_written_is_read_without_rounding() -> None:
    weight = torch.randn(6, 32)
    joined = join(held({"norm": torch.ones(2), **parts_of("a", weight, 16)}))
    assert list(joined) == ["norm", "a.weight"]
    stored = joined["a.weight"]
    assert isinstance(stored, StoredWeight)
    assert (stored.shape, stored.dtype) == ((6, 32), torch.float32)
    assert torch.equal(stored.load(), round_weight(weight, 16)[0])
    assert torch.equal(stored.rows(1, 3), stored.load()[1:3])
    made = layer(6, 32, group=16)
    made.load_parts("weight", {part: lazy.load() for part, lazy in stored.parts.items()})
    assert torch.equal(made.dequantised(torch.float32), stored.load())
    with pytest.raises(ModelError, match="groups of 8"):
        layer(6, 32, group=8).load_parts("weight", {part: lazy.load() for part, lazy in stored.parts.items()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda found: found.__delitem__("a.weight_scale"), "weight_scale of it are missing"),
        (lambda found: found.update({"a.weight_shape": torch.tensor([6, 40])}), r"shape \[6, 40\]"),
        (lambda found: found.update({"a.weight_scale": torch.ones(6, 5)}), r"scales torch\.float32 \[6, 5\]"),
        (lambda found: found.update({"a.weight_packed": torch.ones(6, 4)}), r"words torch\.float32"),
    ],
)
def test_what_is_damaged_is_named(damage: Callable[[Parts], None], message: str) -> None:
    found = parts_of("a", torch.randn(6, 32), 16)
    damage(found)
    with pytest.raises(ModelError, match=message):
        join(held(found))["a.weight"].load()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "int-quantized"),
        (("config_groups", "group_0", "weights", "num_bits"), 8),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "strategy"), "channel"),
        (("config_groups", "group_0", "weights", "group_size"), 12),
        (("config_groups", "group_0", "input_activations", "dynamic"), False),
        (("config_groups", "group_0", "input_activations"), "int8"),
        (("config_groups",), {}),
    ],
)
def test_settings_that_are_not_read_are_named(path: tuple[str, ...], value: Any) -> None:
    settings: Any = dict(Int4Quantizer().settings([], torch.float32))
    assert Int4Quantizer.stored(settings, {}).options == Int4Options()
    place = settings
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ModelError, match="the quantization_config says"):
        Int4Quantizer.stored(settings, {})


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(ModelError, match=r"layers\.0\.up_proj\.weight holds values that are not finite"):
        layer(2, 8).load_weight("weight", torch.full((2, 8), torch.inf))
    with pytest.raises(ModelError, match=r"x\.weight holds"):
        Int4Quantizer(Int4Options(group=8)).store("x", torch.full((2, 8), torch.nan), torch.float32)
