from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pegboard.errors import ConfigError, ModelError
from pegboard.nn import Linear, LinearGroup
from pegboard_lora import DoraAdapter, LoraAdapter, open_adapter
from pegboard_lora.layers import LoraLinear
from pegboard_lora.options import LoraOptions

KINDS = [LoraAdapter, DoraAdapter]


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = Linear(12, 16, bias), Linear(12, 8, bias), Linear(12, 8, bias)
        self.o_proj = Linear(16, 12, bias)
        self.qkv = LinearGroup(self, ("q_proj", "k_proj", "v_proj"))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([16, 8, 8], -1)
        out: Tensor = self.o_proj(torch.tanh(q) * torch.cat((k, v), -1))
        return out


class Model(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(bias) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def make(
    kind: type[LoraAdapter],
    *,
    dtype: torch.dtype = torch.float64,
    fuse: bool = True,
    bias: bool = True,
    parameters: str = "float64",
    **options: Any,
) -> tuple[Model, LoraAdapter]:
    """A model with an attached adapter whose parameters are all random."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Model(bias)
    options = {"rank": 3, "alpha": 5, "dtype": parameters, **options}
    adapter = kind(LoraOptions(**options))
    adapter.attach(model)
    for module in model.modules():
        if isinstance(module, Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.randn(parameter.shape, dtype=dtype) / 4, requires_grad=False))
    if fuse:
        for layer in model.layers:
            assert layer.qkv.fuse()  # type: ignore[union-attr, operator]
    adapter.initialise(model, seed=1, dtype=dtype)
    return model, adapter


def randomise(model: nn.Module, adapter: LoraAdapter) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter.tensors(model).items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        if "magnitude" in name:
            tensor.mul_(1 + 0.1 * noise)
        else:
            tensor.copy_(noise / 3)


def by_formula(model: Model, dora: bool) -> Callable[[Tensor], Tensor]:
    """The papers' formulas, on whole weight matrices, by autograd alone."""

    def effective(module: Any) -> Tensor:
        if not hasattr(module, "base"):
            return module.weight  # type: ignore[no-any-return]
        direction = module.base.weight + module.scaling * module.lora_b @ module.lora_a
        if not dora:
            return direction
        return (module.magnitude / direction.norm(dim=1).detach())[:, None] * direction

    def apply(module: Any, x: Tensor) -> Tensor:
        out = x @ effective(module).T
        bias = getattr(module, "base", module).bias
        return out if bias is None else out + bias

    def run(x: Tensor) -> Tensor:
        for layer in model.layers:
            q, k, v = (apply(getattr(layer, f"{n}_proj"), x) for n in "qkv")
            x = x + apply(layer.o_proj, torch.tanh(q) * torch.cat((k, v), -1))
        return x

    return run


def test_a_base_that_gives_its_weight_is_multiplied_with_the_update() -> None:
    """As one that holds few bits does on a device."""

    class Base(nn.Module):
        in_features, out_features = 12, 10

        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.dense = lambda dtype: weight.to(dtype)

        def forward(self, x: Tensor, ctx: None = None) -> Tensor:
            raise AssertionError("multiplied twice")

    weight = torch.randn(10, 12, dtype=torch.float64)
    layer = LoraLinear(Base(weight), 3, 0.5, dtype=torch.float64)
    layer.reset(device=torch.device("cpu"), init="gaussian", generator=torch.Generator().manual_seed(1))
    nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    inputs = [x, layer.lora_a, layer.lora_b]
    out, expected = layer(x), x @ (weight + 0.5 * layer.lora_b @ layer.lora_a).T
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(out)
    found, exact = (torch.autograd.grad(value, inputs, upstream) for value in (out, expected))
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fuse", [True, False])
def test_the_backward_pass_copies_no_gradient(fuse: bool) -> None:
    model, _ = make(LoraAdapter, fuse=fuse, targets="all-linear")
    found, left = set(), [model(torch.randn(7, 12, dtype=torch.float64, requires_grad=True)).grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [following for following, _ in node.next_functions]
    assert not [node for node in found if node.name() == "CopySlices"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", ["all-linear", ["k_proj", "o_proj"]])
def test_output_and_gradients_are_the_formulas(kind: type[LoraAdapter], fuse: bool, bias: bool, targets: Any) -> None:
    model, adapter = make(kind, fuse=fuse, bias=bias, targets=targets)
    randomise(model, adapter)
    inputs = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 12, dtype=torch.float64)
    trained = [p for p in model.parameters() if p.requires_grad]
    out = model(inputs)
    expected = by_formula(model, kind is DoraAdapter)(inputs)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(out, [inputs, *trained], upstream)
    wanted = torch.autograd.grad(expected, [inputs, *trained], upstream)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_trains(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        n for n, _ in model.named_parameters() if n.rpartition(".")[2] in ("lora_a", "lora_b", "magnitude")
    }
    assert len(trained) == len(adapter.tensors(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind)
    x = torch.randn(5, 12, dtype=torch.float64)
    with adapter.disabled(model):
        plain = model(x)
    torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_is_the_base_model_and_restores(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind)
    x = torch.randn(5, 12, dtype=torch.float64)
    plain = model(x).detach()
    randomise(model, adapter)
    changed = model(x)
    assert not torch.allclose(changed, plain)
    with pytest.raises(RuntimeError, match="inside"), adapter.disabled(model):
        with adapter.disabled(model):
            torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-12)
        raise RuntimeError("inside")
    assert torch.equal(model(x), changed)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_writes_into_the_fused_storage(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind)
    randomise(model, adapter)
    x = torch.randn(5, 12, dtype=torch.float64)
    before = model(x).detach()
    addresses = [m.base.weight.data_ptr() for m in model.modules() if hasattr(m, "additive")]
    adapter.merge(model)
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    assert [m.weight.data_ptr() for m in linears] == addresses
    assert not any(hasattr(m, "additive") for m in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_of_bfloat16_rounds_once(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind, dtype=torch.bfloat16)
    randomise(model, adapter)
    module: Any = model.layers[0].q_proj
    direction = module.base.weight.double() + module.scaling * module.lora_b @ module.lora_a
    if kind is DoraAdapter:
        direction = direction * (module.magnitude / direction.norm(dim=1))[:, None]
    base = module.base
    adapter.merge(model)
    torch.testing.assert_close(base.weight.double(), direction, rtol=2**-8, atol=1e-6)


def test_values_depend_on_the_seed_alone() -> None:
    first, second, other = (make(LoraAdapter) for _ in range(3))
    other[1].initialise(other[0], seed=2, dtype=torch.float64)
    a, b, c = (adapter.tensors(model) for model, adapter in (first, second, other))
    name = "base_model.model.layers.1.q_proj.lora_A.weight"
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])
    assert a[name].abs().max() <= 12**-0.5
    assert a[name.replace("_A", "_B")].count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_in_training_only(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind, dropout=0.5, targets=["q_proj"])
    randomise(model, adapter)
    module: Any = model.layers[0].q_proj
    x = torch.randn(4000, 12, dtype=torch.float64)
    module.eval()
    exact = module(x)
    module.train()
    drawn = torch.stack([module(x) for _ in range(30)]).detach()
    assert not torch.equal(drawn[0], drawn[1])
    # The mask has expectation 1 and the output is linear in it, so the error of a mean of 30 falls by sqrt(30) = 5.5.
    assert (drawn.mean(0) - exact).abs().mean() < 0.25 * (drawn[0] - exact).abs().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_activations_with_float32_parameters(kind: type[LoraAdapter]) -> None:
    model, adapter = make(kind, dtype=torch.bfloat16, parameters="float32")
    randomise(model, adapter)
    x = torch.randn(9, 12, dtype=torch.bfloat16)
    out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_round_trip(kind: type[LoraAdapter], tmp_path: Path) -> None:
    model, adapter = make(kind, targets=["*.q_proj", "o_proj"], rank_pattern={"o_proj": 2})
    randomise(model, adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config("org/base")))
    save_file(dict(adapter.tensors(model)), tmp_path / "adapter_model.safetensors")
    opened, tensors = open_adapter(tmp_path)
    assert type(opened) is kind
    with torch.device("meta"):
        again = Model()
    opened.attach(again)
    for module in again.modules():
        if isinstance(module, Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.zeros(parameter.shape, dtype=torch.float64)))
    sources = {n.replace(".base.", "."): p for n, p in model.named_parameters()}
    targets = {n.replace(".base.", "."): p for n, p in again.named_parameters()}
    with torch.no_grad():
        for name, parameter in targets.items():
            if not parameter.is_meta:
                parameter.copy_(sources[name])
    opened.load(again, tensors)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-6)


def test_load_lists_every_problem_and_changes_nothing() -> None:
    model, adapter = make(LoraAdapter)
    tensors = {name: tensor.clone() + 1 for name, tensor in adapter.tensors(model).items()}
    before = {name: tensor.clone() for name, tensor in adapter.tensors(model).items()}
    first, second, *_ = tensors
    del tensors[first]
    tensors[second] = tensors[second][:1]
    tensors["stranger"] = torch.zeros(1)
    with pytest.raises(ModelError) as caught:
        adapter.load(model, tensors)
    text = str(caught.value)
    assert f"missing: {first}" in text and f"wrong shape: {second}" in text and "unexpected: stranger" in text
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.tensors(model).items())


def test_a_layer_without_float_weights_refuses_dora_and_merging() -> None:
    class Packed(nn.Module):
        in_features = out_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.zeros(4, 2, dtype=torch.uint8))

        def forward(self, x: Tensor, ctx: None = None) -> Tensor:
            return torch.ones_like(x)

    model = nn.ModuleDict({"q_proj": Packed()})
    with pytest.raises(ConfigError, match="DoRA needs full-precision weights, but q_proj is a Packed"):
        DoraAdapter(LoraOptions(targets=["q_proj"])).attach(model)
    adapter = LoraAdapter(LoraOptions(targets=["q_proj"]))
    adapter.attach(model)
    adapter.initialise(model, seed=0, dtype=torch.float32)
    assert torch.equal(model["q_proj"](torch.zeros(2, 4)), torch.ones(2, 4))
    with pytest.raises(ConfigError, match="merging needs full-precision weights"):
        adapter.merge(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": "many"}, "rank"),
    ],
)
def test_unsupported_folder_is_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model, adapter = make(LoraAdapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config("org/base") | change))
    save_file(dict(adapter.tensors(model)), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=said):
        open_adapter(tmp_path)


def test_damaged_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is damaged"):
        open_adapter(tmp_path)


def test_dora_norm_is_kept_until_its_sources_change() -> None:
    model, adapter = make(DoraAdapter)
    randomise(model, adapter)
    module: Any = model.layers[0].q_proj
    with torch.no_grad():
        kept = module.norm()
        assert module.norm() is kept
        module.lora_b.mul_(2)
        expected = (module.base.weight + module.scaling * module.lora_b @ module.lora_a).norm(dim=1)
        torch.testing.assert_close(module.norm(), expected, rtol=1e-12, atol=1e-12)


def test_the_family_says_what_is_targeted_where_options_do_not() -> None:
    adapter = LoraAdapter(LoraOptions(rank=2))
    model = Model(bias=False)
    assert {name.rpartition(".")[2] for name in adapter.attach(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    other = Model(bias=False)
    other.adapter_targets = ("k_proj",)  # type: ignore[assignment]
    adapter = LoraAdapter(LoraOptions(rank=2))
    assert {name.rpartition(".")[2] for name in adapter.attach(other)} == {"k_proj"}
    assert adapter.config("base")["target_modules"] == ["k_proj"]
