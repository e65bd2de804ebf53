from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.nn import CausalLM
from pegboard.plugins.load import Registry
from pegboard_phi.family import Phi
from pegboard_phi.plugin import SPEC

CONFIG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FACTORS = {"short_factor": [1.0, 1.0, 2.0, 2.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}


def build(**changes: Any) -> CausalLM:
    with torch.device("meta"):
        return Phi().build({**CONFIG, **changes})


def test_names_and_shapes_are_those_of_the_checkpoint() -> None:
    layer = {
        "input_layernorm.weight": [32],
        "mlp.down_proj.weight": [32, 20],
        "mlp.gate_up_proj.weight": [40, 32],
        "post_attention_layernorm.weight": [32],
        "self_attn.o_proj.weight": [32, 32],
        "self_attn.qkv_proj.weight": [64, 32],
    }
    top = {"lm_head.weight": [32, 32], "model.embed_tokens.weight": [32, 32], "model.norm.weight": [32]}
    found = {name: list(parameter.shape) for name, parameter in build().named_parameters()}
    assert found == top | {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    assert "lm_head.weight" not in dict(build(tie_word_embeddings=True).named_parameters())


@pytest.mark.parametrize("window", [None, 9])
def test_a_window_counts_for_every_layer(window: int | None) -> None:
    assert [spec.window for spec in build(sliding_window=window).attention_specs] == [window] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.75},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75, "rope_theta": 10000.0}},
    ],
)
def test_a_part_of_each_head_turns(changes: dict[str, Any]) -> None:
    assert build(**changes).rotaries[0].dim == 6
    assert build().rotaries[0].dim == 8


@pytest.mark.parametrize("share", [0.0, 1.5, 0.4, "half", True])
def test_a_share_that_does_not_fit_is_refused(share: object) -> None:
    with pytest.raises(ModelError, match="partial_rotary_factor is"):
        build(partial_rotary_factor=share)


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_longrope_under_all_its_names(name: str) -> None:
    model = build(rope_scaling={"type": name, **FACTORS}, max_position_embeddings=131072)
    assert model.rope_limit == 4096
    assert model.rotaries[0].factor == pytest.approx((1 + 5 / 12) ** 0.5)
    shorter = build(rope_scaling={"type": name, **FACTORS}, original_max_position_embeddings=100)
    assert shorter.rope_limit == 100


def test_models_without_longrope_have_no_limit() -> None:
    assert build().rope_limit is None
    assert build(original_max_position_embeddings=4096, rope_scaling=None).rope_limit is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "lacks the key 'short_factor'"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0]}}, "long_factor must be 4 positive"),
        ({"rope_scaling": {"type": "mystery"}}, "rope_type 'mystery'"),
        ({"rope_scaling": "longrope"}, "rope_scaling is 'longrope'"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_what_is_not_done_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("name", "style", "unit", "parts"),
    [
        ("model.layers.1.self_attn.qkv_proj.weight", "column", 8, (32, 16, 16)),
        ("model.layers.1.mlp.gate_up_proj.weight", "column", 1, (20, 20)),
        ("model.layers.1.self_attn.o_proj.weight", "row", 8, ()),
        ("model.layers.1.mlp.down_proj.weight", "row", 1, ()),
        ("lm_head.weight", "vocab", 1, ()),
    ],
)
def test_parallel_plan_splits_fused_parameters_part_by_part(
    name: str, style: str, unit: int, parts: tuple[int, ...]
) -> None:
    rule = next(rule for rule in Phi().parallel_plan(CONFIG) if fnmatchcase(name, rule.pattern))
    assert (rule.style, rule.unit, rule.parts) == (style, unit, parts)


@pytest.mark.parametrize(("capability", "value"), [("architectures", "Phi3ForCausalLM"), ("model_types", "phi3")])
def test_family_is_found_by_what_a_config_says(capability: str, value: str) -> None:
    assert Registry.of({("model", "phi"): SPEC}).match("model", capability, value) == ["phi"]
