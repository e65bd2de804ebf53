from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.nn import dense_causal_lm, dense_parallel_plan

CONFIG: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; at most 4096"),
        ({"head_dim": 10**9}, "head_dim is 1000000000; at most 65536"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776; at most"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; a positive number is needed"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, no multiple of its num_key_value_heads, 3"),
        ({"hidden_size": 18}, "hidden_size is 18, no multiple of its num_attention_heads, 4"),
    ],
)
def test_bad_config_names_the_key(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=message):
        dense_causal_lm({**CONFIG, **change})


def test_layers_with_and_without_windows_have_a_cache_group_each() -> None:
    with torch.device("meta"):
        model = dense_causal_lm(CONFIG, window=lambda layer: 8 if layer else None)
    assert [(spec.window, spec.group) for spec in model.attention_specs] == [(None, 0), (8, 1)]
    assert [model.cache_spec(i, torch.float32).kind for i in range(2)] == ["full", "sliding"]


def test_head_dim_follows_from_the_hidden_size_or_is_given() -> None:
    with torch.device("meta"):
        assert dense_causal_lm(CONFIG).attention_specs[0].head_dim == 4
        assert dense_causal_lm({**CONFIG, "head_dim": 6}).model.layers[0].self_attn.q_proj.weight.shape == (24, 16)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("model.layers.0.self_attn.k_proj.bias", "column"),
        ("model.layers.0.self_attn.o_proj.weight", "row"),
        ("model.layers.0.self_attn.o_proj.bias", "replicate"),
        ("model.layers.0.mlp.up_proj.weight", "column"),
        ("model.layers.0.mlp.down_proj.weight", "row"),
        ("model.embed_tokens.weight", "vocab"),
        ("lm_head.weight", "vocab"),
        ("model.norm.weight", "replicate"),
    ],
)
def test_parallel_plan(name: str, style: str) -> None:
    rule = next(rule for rule in dense_parallel_plan(CONFIG) if fnmatch(name, rule.pattern))
    assert rule.style == style


def test_fused_layers_compute_what_separate_ones_do() -> None:
    torch.manual_seed(0)
    models = [dense_causal_lm(CONFIG, fused=fused, rotary_share=0.5).double() for fused in (False, True)]
    apart, fused = (dict(model.named_parameters()) for model in models)
    with torch.no_grad():
        for name, parameter in apart.items():
            apart[name].copy_(torch.randn(parameter.shape, dtype=torch.float64))
        for name, parameter in fused.items():
            members = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
            leaf = name.split(".")[-2]
            parts = [apart[name.replace(leaf, member)] for member in members.get(leaf, (leaf,))]
            parameter.copy_(torch.cat(parts))
    assert {name.split(".")[-2] for name in fused if ".0." in name} & {"q_proj", "up_proj"} == set()
    x, outs = torch.randn(5, 16, dtype=torch.float64), []
    for model in models:
        model.fuse()
        layer = model.model.layers[0]
        outs.append((layer.self_attn.qkv(x), layer.mlp(x, None)))
    torch.testing.assert_close(outs[0], outs[1])
    assert models[1].rotaries[0].dim == 2
    rules = dense_parallel_plan(CONFIG, fused=True)
    found = {
        leaf: next(r for r in rules if fnmatch(f"model.layers.0.{leaf}.weight", r.pattern))
        for leaf in ("self_attn.qkv_proj", "mlp.gate_up_proj", "self_attn.o_proj")
    }
    assert [(r.style, r.unit, r.parts) for r in found.values()] == [
        ("column", 4, (16, 8, 8)),
        ("column", 1, (24, 24)),
        ("row", 4, ()),
    ]
