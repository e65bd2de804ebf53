from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.nn import CausalLM
from pegboard.plugins.load import Registry
from pegboard_gemma.family import Gemma
from pegboard_gemma.plugin import SPEC

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
GEMMA2 = {**SIZES, "architectures": ["Gemma2ForCausalLM"]}
GEMMA3 = {**SIZES, "architectures": ["Gemma3ForCausalLM"]}
FULL, SLIDES = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 8.0}


def build(config: dict[str, Any], **changes: Any) -> CausalLM:
    with torch.device("meta"):
        return Gemma().build({**config, **changes})


def test_names_and_shapes_are_those_of_the_checkpoint() -> None:
    layer = {
        "input_layernorm.weight": [16],
        "mlp.down_proj.weight": [16, 20],
        "mlp.gate_proj.weight": [20, 16],
        "mlp.up_proj.weight": [20, 16],
        "post_attention_layernorm.weight": [16],
        "post_feedforward_layernorm.weight": [16],
        "pre_feedforward_layernorm.weight": [16],
        "self_attn.k_proj.weight": [16, 16],
        "self_attn.o_proj.weight": [16, 32],
        "self_attn.q_proj.weight": [32, 16],
        "self_attn.v_proj.weight": [16, 16],
    }
    norms = {"self_attn.q_norm.weight": [8], "self_attn.k_norm.weight": [8]}
    top = {"model.embed_tokens.weight": [32, 16], "model.norm.weight": [16]}
    for config, own in ((GEMMA2, layer), (GEMMA3, layer | norms)):
        found = {name: list(parameter.shape) for name, parameter in build(config).named_parameters()}
        assert found == top | {f"model.layers.{i}.{name}": shape for i in range(6) for name, shape in own.items()}


def test_sizes_that_a_config_leaves_out() -> None:
    config = {key: value for key, value in GEMMA2.items() if key not in ("head_dim", "num_key_value_heads")}
    spec = build(config, num_attention_heads=8).attention_specs[0]
    assert (spec.head_dim, spec.num_kv_heads, spec.scale) == (256, 4, 1 / 16)
    assert build(GEMMA2).tied and not build(GEMMA2, tie_word_embeddings=False).tied
    assert (build(GEMMA2).max_positions, build(GEMMA3).max_positions) == (8192, 131072)


@pytest.mark.parametrize(
    ("config", "changes", "windows"),
    [
        (GEMMA2, {}, [4096, None] * 3),
        (GEMMA2, {"sliding_window": 9}, [9, None] * 3),
        (GEMMA2, {"sliding_window": None}, [None] * 6),
        (GEMMA3, {"sliding_window": 9}, [9] * 5 + [None]),
        (GEMMA3, {"sliding_window": 9, "sliding_window_pattern": 3}, [9, 9, None] * 2),
        (GEMMA3, {"sliding_window": 9, "layer_types": [FULL, SLIDES] * 3}, [None, 9] * 3),
    ],
)
def test_which_layers_slide(config: dict[str, Any], changes: dict[str, Any], windows: list[int | None]) -> None:
    specs = build(config, **changes).attention_specs
    assert [spec.window for spec in specs] == windows
    assert [spec.group for spec in specs] == [0 if window is None else 1 for window in windows]


def test_soft_caps() -> None:
    def caps(config: dict[str, Any], **changes: Any) -> tuple[float | None, float | None]:
        model = build(config, **changes)
        return model.attention_specs[0].softcap, model.head.softcap

    assert caps(GEMMA2) == (50.0, 30.0)
    assert caps(GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=7) == (None, 7.0)
    assert caps(GEMMA3) == (None, None)
    assert caps(GEMMA3, final_logit_softcapping=30.0) == (None, 30.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500.0, "rope_local_base_freq": 20.0, "rope_scaling": LINEAR},
        {
            "rope_parameters": {
                FULL: {**LINEAR, "rope_theta": 500.0},
                SLIDES: {"rope_type": "default", "rope_theta": 20.0},
            }
        },
    ],
)
def test_angles_of_the_two_kinds_of_layers(changes: dict[str, Any]) -> None:
    model = build(GEMMA3, **changes)
    for rotary in model.rotaries:
        rotary.materialise(torch.device("cpu"))
    full, local = (rotary.inv_freq for rotary in model.rotaries)
    steps = torch.arange(4) / 4
    torch.testing.assert_close(full, 500.0**-steps / 8)
    torch.testing.assert_close(local, 20.0**-steps)
    assert [attention.rope for attention in model.attentions] == [1, 1, 1, 1, 1, 0]


def test_gemma2_has_one_table_for_all_layers() -> None:
    model = build(GEMMA2)
    assert len(model.rotaries) == 1 and {attention.rope for attention in model.attentions} == {0}


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GEMMA2, {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (GEMMA2, {"final_logit_softcapping": -1}, "final_logit_softcapping is -1"),
        (GEMMA2, {"query_pre_attn_scalar": "many"}, "query_pre_attn_scalar is 'many'"),
        (GEMMA2, {"layer_types": [FULL]}, "layer_types is"),
        (GEMMA2, {"layer_types": ["chunked_attention"] * 6}, "layer_types is"),
        (GEMMA2, {"sliding_window": 0}, "sliding_window is 0"),
        (GEMMA3, {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters is"),
        (GEMMA2, {"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_what_is_not_done_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build(config, **changes)
    assert caught.value.fix


def test_embeddings_are_scaled_by_a_factor_of_their_own_dtype() -> None:
    model = build(GEMMA2, hidden_size=3072)
    # sqrt(3072) is 55.4256…, of which bfloat16 keeps 55.5: what the weights were trained with.
    assert model._scales[torch.bfloat16] == 55.5
    assert model._scales[torch.float32] == pytest.approx(3072**0.5)


@pytest.mark.parametrize(
    ("name", "style", "unit"),
    [
        ("model.layers.1.self_attn.k_proj.weight", "column", 8),
        ("model.layers.1.self_attn.o_proj.weight", "row", 8),
        ("model.layers.1.self_attn.q_norm.weight", "replicate", 1),
        ("model.layers.1.pre_feedforward_layernorm.weight", "replicate", 1),
        ("model.layers.1.mlp.down_proj.weight", "row", 1),
        ("model.embed_tokens.weight", "vocab", 1),
    ],
)
def test_parallel_plan_keeps_heads_whole(name: str, style: str, unit: int) -> None:
    rule = next(rule for rule in Gemma().parallel_plan(GEMMA3) if fnmatchcase(name, rule.pattern))
    assert (rule.style, rule.unit) == (style, unit)


@pytest.mark.parametrize(
    ("capability", "value"),
    [("architectures", "Gemma2ForCausalLM"), ("architectures", "Gemma3ForCausalLM"), ("model_types", "gemma3_text")],
)
def test_family_is_found_by_what_a_config_says(capability: str, value: str) -> None:
    assert Registry.of({("model", "gemma"): SPEC}).match("model", capability, value) == ["gemma"]


def test_model_type_decides_where_no_architecture_is_named() -> None:
    assert build({**SIZES, "model_type": "gemma3_text"}).attentions[0].q_norm is not None
    assert build({**SIZES, "model_type": "gemma2"}).attentions[0].q_norm is None
