"""One rank's part of a model, as its family's plan says; no process group is needed to cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pegboard.divide import Division, divide
from pegboard.errors import ConfigError
from pegboard.nn import CausalLM
from pegboard.nn.dense import dense_causal_lm, dense_parallel_plan
from pegboard.nn.parallel import Region, Split, span
from pegboard_sdk.toys.model import TINY, TinyFamily


def part(rank: int, world: int, *, sequence: bool = False, **more: Any) -> tuple[CausalLM, Division]:
    config = {**TINY, **more}
    with torch.device("meta"):
        model = TinyFamily().build(config)
    return model, divide(model, TinyFamily().parallel_plan(config), Region(None, rank, world, sequence))


@pytest.mark.parametrize(("whole", "world"), [(8, 2), (7, 3), (291, 4)])
def test_spans_cover_everything_once(whole: int, world: int) -> None:
    spans = [span(whole, rank, world) for rank in range(world)]
    assert [i for start, size in spans for i in range(start, start + size)] == list(range(whole))


def test_a_fused_layer_is_cut_block_by_block() -> None:
    weight = torch.arange(16.0)[:, None].expand(16, 3)
    splits = [Split(0, (8, 4, 4), rank, 2) for rank in range(2)]
    assert splits[0].of(weight)[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 12, 13]
    assert splits[1].of(weight)[:, 0].tolist() == [4, 5, 6, 7, 10, 11, 14, 15]
    assert (splits[0].size, splits[0].whole, splits[0].start) == (8, 16, None)
    assert Split(1, (6,), 1, 2).of(torch.arange(12).view(2, 6)).tolist() == [[3, 4, 5], [9, 10, 11]]


def test_heads_columns_and_vocabulary_are_shared_out() -> None:
    model, division = part(1, 2)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layer = "model.layers.0."
    assert shapes[f"{layer}self_attn.q_proj.weight"] == (12, 24)
    assert shapes[f"{layer}self_attn.k_proj.weight"] == (6, 24)
    assert shapes[f"{layer}self_attn.o_proj.weight"] == (24, 12)
    assert shapes[f"{layer}mlp.up_proj.weight"] == (20, 24)
    assert shapes[f"{layer}mlp.down_proj.weight"] == (24, 20)
    assert shapes["model.embed_tokens.weight"] == (130, 24)
    assert shapes[f"{layer}input_layernorm.weight"] == (24,)
    assert {(spec.num_heads, spec.num_kv_heads) for spec in model.attention_specs} == {(2, 1)}
    assert division.splits["model.embed_tokens.weight"].start == 130
    assert division.partial == set()


def test_norms_between_regions_have_partial_gradients_where_the_sequence_is_split() -> None:
    _, division = part(0, 2, sequence=True)
    assert division.partial == {
        f"model.layers.{index}.{name}.weight"
        for index in range(2)
        for name in ("input_layernorm", "post_attention_layernorm")
    }


def test_norms_of_heads_always_have() -> None:
    with torch.device("meta"):
        model = dense_causal_lm(TINY, qk_norm=True, out_bias=True, qkv_bias=True)
    division = divide(model, dense_parallel_plan(TINY), Region(None, 0, 2))
    ends = {name.split("self_attn.")[1] for name in division.partial}
    assert ends == {"q_norm.weight", "k_norm.weight"}
    assert division.splits["model.layers.0.self_attn.q_proj.bias"].size == 12
    assert model.model.layers[0].self_attn.o_proj.late_bias  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "world", "told"),
    [
        ({}, 4, r"model\.layers\.0\.self_attn\.k_proj: 2 heads do not divide over 4 processes"),
        ({"intermediate_size": 41}, 2, r"model\.layers\.0\.mlp\.gate_proj: 41 columns do not divide over 2"),
    ],
)
def test_what_does_not_divide_is_named(more: dict[str, Any], world: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        part(0, world, **more)
