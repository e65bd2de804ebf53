from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pegboard.errors import ConfigError, ModelError, PluginError
from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import Linear
from pegboard.plugins.load import Registry
from pegboard.quantised import stored_quantizer
from pegboard_nf4.layers import Nf4Linear
from pegboard_nf4.matrix import quantise
from pegboard_nf4.options import Nf4Options
from pegboard_nf4.plugin import SPEC
from pegboard_nf4.quantizer import Nf4Quantizer
from pegboard_nf4.stored import StoredWeight, join, parts_of
from pegboard_sdk.toys.model import TINY, Held, RandomFiles, TinyFamily, logits, random_model

STATE = "quant_state.bitsandbytes__nf4"
IDS = torch.tensor([3, 1, 4, 1, 5])
Parts = dict[str, torch.Tensor]


def held(tensors: Parts) -> dict[str, Any]:
    return {name: Held(name, tensor) for name, tensor in tensors.items()}


def parts(double: bool = True) -> Parts:
    return parts_of("a.weight", quantise(torch.randn(6, 32), double=double), torch.float32)


@pytest.mark.parametrize("double", [True, False])
def test_what_is_written_is_read_without_rounding(double: bool) -> None:
    matrix = quantise(torch.randn(6, 32), double=double)
    written = parts_of("a.weight", matrix, torch.bfloat16)
    joined = join(held({"norm": torch.ones(2), **written}))
    assert list(joined) == ["norm", "a.weight"]
    weight = joined["a.weight"]
    assert isinstance(weight, StoredWeight)
    assert (weight.shape, weight.dtype) == ((6, 32), torch.bfloat16)
    assert torch.equal(weight.load(), matrix.dequantise(torch.bfloat16))
    assert torch.equal(weight.rows(1, 3), weight.load()[1:3])


def test_the_names_and_types_of_the_format() -> None:
    found = {name: (tuple(t.shape), t.dtype) for name, t in parts().items() if STATE not in name}
    assert found == {
        "a.weight": ((96, 1), torch.uint8),
        "a.weight.absmax": ((3,), torch.uint8),
        "a.weight.quant_map": ((16,), torch.float32),
        "a.weight.nested_absmax": ((1,), torch.float32),
        "a.weight.nested_quant_map": ((256,), torch.float32),
    }
    state = json.loads(bytes(parts()[f"a.weight.{STATE}"].tolist()))
    offset = state.pop("nested_offset")
    assert isinstance(offset, float)
    assert state == {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float32",
        "shape": [6, 32],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
    }


def with_state(**changes: Any) -> Callable[[Parts], None]:
    def change(found: Parts) -> None:
        state = {**json.loads(bytes(found[f"a.weight.{STATE}"].tolist())), **changes}
        found[f"a.weight.{STATE}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return change


def without(name: str) -> Callable[[Parts], None]:
    return lambda found: found.__delitem__(name)


def replaced(name: str, tensor: torch.Tensor) -> Callable[[Parts], None]:
    return lambda found: found.update({name: tensor})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_state(quant_type="fp4"), "quant_type='fp4'; read is 'nf4'"),
        (with_state(blocksize=128), "blocksize=128; read is 64"),
        (with_state(nested_blocksize=16), "nested_blocksize=16"),
        (with_state(dtype="float64"), "dtype='float64'"),
        (with_state(nested_offset="x"), "holds no nested_offset"),
        (with_state(shape=[6]), "holds no shape of a matrix"),
        (with_state(shape=[6, 1 << 40]), "holds no shape of a matrix"),
        (with_state(shape=[60, 32]), r"a\.weight is torch\.uint8 \[96, 1\], expected 960"),
        (without("a.weight"), r"a\.weight is missing"),
        (without("a.weight.absmax"), r"a\.weight\.absmax is missing"),
        (replaced("a.weight.absmax", torch.zeros(3)), r"absmax is torch\.float32"),
        (replaced("a.weight.nested_absmax", torch.zeros(2)), r"nested_absmax is torch\.float32 \[2\], expected 1"),
        (replaced(f"a.weight.{STATE}", torch.zeros(1 << 17, dtype=torch.uint8)), "no JSON text"),
        (replaced(f"a.weight.{STATE}", torch.full((4,), 255, dtype=torch.uint8)), "is not JSON"),
        (replaced(f"a.weight.{STATE}", torch.tensor(list(b"[1]"), dtype=torch.uint8)), "holds no shape"),
    ],
)
def test_what_is_damaged_or_foreign_is_named(damage: Callable[[Parts], None], message: str) -> None:
    found = parts()
    damage(found)
    with pytest.raises(ModelError, match=message):
        join(held(found))


@pytest.mark.parametrize("name", ["quant_map", "nested_quant_map"])
def test_other_tables_are_refused(name: str) -> None:
    found = parts()
    found[f"a.weight.{name}"] = found[f"a.weight.{name}"].flip(0)
    with pytest.raises(ModelError, match=rf"a\.weight\.{name} is another table"):
        join(held(found))["a.weight"].load()


class StoredFiles(RandomFiles):
    """The tiny model with its weights as the quantizer stores them."""

    def __init__(self, made: Nf4Quantizer, settings: dict[str, Any] | None = None) -> None:
        super().__init__(TinyFamily(), TINY)
        with torch.device("meta"):
            chosen = made.chosen(TinyFamily().build(TINY))
        tensors: dict[str, Any] = {}
        for name, lazy in self.tensors.items():
            owner = name.removesuffix(".weight")
            stored = made.store(owner, lazy.load(), torch.float32) if owner in chosen else {name: lazy.load()}
            tensors |= held(dict(stored))
        self.tensors = tensors
        self.config = {**TINY, "quantization_config": settings or dict(made.settings([], torch.float32))}


def registry() -> Registry:
    from pegboard_sdk.toys import model

    toys = {
        ("platform", "host"): model._PLATFORM,
        ("attention", "reference"): model._ATTENTION,
        ("model", "t"): model._FAMILY,
    }
    return Registry.of({**toys, ("quantizer", "nf4"): SPEC})


def test_a_stored_model_is_the_one_quantised_while_it_is_read() -> None:
    from pegboard.build import build_model

    made = Nf4Quantizer(Nf4Options(skip=["down_proj"]))
    built = build_model(registry(), StoredFiles(made), dtype="float32", phase="decode")
    assert isinstance(built.quantizer, Nf4Quantizer)
    fresh = random_model(config=TINY, dtype="float32", phase="decode", quantizer=made)
    for name, module in fresh.model.named_modules():
        other = built.model.get_submodule(name)
        assert type(other) is type(module)
        if isinstance(module, Nf4Linear):
            assert all(torch.equal(a, b) for a, b in zip(module.buffers(), other.buffers(), strict=True))
        if type(module) is Linear:
            assert name.endswith("down_proj")
    assert torch.equal(logits(built, IDS), logits(fresh, IDS))


class Other(Quantizer):
    """Another quantizer."""

    def swap(self, model: torch.nn.Module) -> list[str]:
        return []


def test_which_plugin_reads_a_checkpoint() -> None:
    made = Nf4Quantizer()
    files = StoredFiles(made)
    assert isinstance(stored_quantizer(registry(), files, asked=made), Nf4Quantizer)
    with pytest.raises(ConfigError, match="are quantised already, as 'bitsandbytes'"):
        stored_quantizer(registry(), files, asked=Other())
    with pytest.raises(PluginError, match="are quantised as 'gptq', which no installed plugin reads"):
        stored_quantizer(registry(), StoredFiles(made, {"quant_method": "gptq"}))
    with pytest.raises(ModelError, match="names no quant_method"):
        stored_quantizer(registry(), StoredFiles(made, {"bits": 4}))
    for settings in ({"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}):
        with pytest.raises(ModelError, match="are read as nf4"):
            stored_quantizer(registry(), StoredFiles(made, {"quant_method": "bitsandbytes", **settings}))
