from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.nn import CausalLM
from pegboard.plugins.load import Registry
from pegboard_llama.family import Llama, llama3
from pegboard_llama.plugin import SPEC

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
MISTRAL = {"architectures": ["MistralForCausalLM"]}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def build(**changes: Any) -> CausalLM:
    with torch.device("meta"):
        return Llama().build({**CONFIG, **changes})


def shapes(model: CausalLM) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def test_names_and_shapes_are_those_of_the_checkpoint() -> None:
    layer = {
        "input_layernorm.weight": [12],
        "mlp.down_proj.weight": [12, 20],
        "mlp.gate_proj.weight": [20, 12],
        "mlp.up_proj.weight": [20, 12],
        "post_attention_layernorm.weight": [12],
        "self_attn.k_proj.weight": [4, 12],
        "self_attn.o_proj.weight": [12, 12],
        "self_attn.q_proj.weight": [12, 12],
        "self_attn.v_proj.weight": [4, 12],
    }
    top = {"lm_head.weight": [32, 12], "model.embed_tokens.weight": [32, 12], "model.norm.weight": [12]}
    layers = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    assert shapes(build()) == {**top, **layers}
    assert "lm_head.weight" not in shapes(build(tie_word_embeddings=True))


@pytest.mark.parametrize(
    ("key", "biased"),
    [("attention_bias", {"q_proj", "k_proj", "v_proj", "o_proj"}), ("mlp_bias", {"gate_proj", "up_proj", "down_proj"})],
)
def test_biases_are_where_the_config_says(key: str, biased: set[str]) -> None:
    found = {name.split(".")[-2] for name in shapes(build(**{key: True})) if name.endswith(".bias")}
    assert found == biased
    assert not any(name.endswith(".bias") for name in shapes(build()))


def test_head_size_may_differ_from_its_share_of_the_hidden_size() -> None:
    found = shapes(build(head_dim=6))
    assert found["model.layers.0.self_attn.q_proj.weight"] == [18, 12]
    assert found["model.layers.0.self_attn.o_proj.weight"] == [12, 18]


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({**MISTRAL, "sliding_window": 7}, 7),
        ({**MISTRAL, "sliding_window": None}, None),
        (MISTRAL, 4096),
        ({"architectures": None, "model_type": "mistral"}, 4096),
        ({}, None),
        ({"sliding_window": 7}, None),
    ],
)
def test_mistral_alone_slides_and_in_every_layer(changes: dict[str, Any], window: int | None) -> None:
    assert [spec.window for spec in build(**changes).attention_specs] == [window, window]


@pytest.mark.parametrize("window", [0, -1, "4096", 1.5, True])
def test_window_must_be_a_positive_integer(window: object) -> None:
    with pytest.raises(ModelError, match="sliding_window"):
        build(**MISTRAL, sliding_window=window)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "mystery", "factor": 2.0}}, "rope_type 'mystery'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "factor": "eight"}}, "could not convert string to float: 'eight'"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "division by zero"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
    ],
)
def test_what_is_not_done_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("name", "style", "unit"),
    [
        ("model.layers.1.self_attn.q_proj.weight", "column", 4),
        ("model.layers.1.self_attn.v_proj.bias", "column", 4),
        ("model.layers.1.self_attn.o_proj.weight", "row", 4),
        ("model.layers.1.self_attn.o_proj.bias", "replicate", 1),
        ("model.layers.1.mlp.gate_proj.weight", "column", 1),
        ("model.layers.1.mlp.down_proj.weight", "row", 1),
        ("model.layers.1.input_layernorm.weight", "replicate", 1),
        ("model.embed_tokens.weight", "vocab", 1),
    ],
)
def test_parallel_plan_keeps_heads_whole(name: str, style: str, unit: int) -> None:
    rule = next(rule for rule in Llama().parallel_plan(CONFIG) if fnmatchcase(name, rule.pattern))
    assert (rule.style, rule.unit) == (style, unit)


def test_llama3_slows_long_waves_and_keeps_short_ones() -> None:
    # Waves of so many positions; the blend is between 8192 / 4 and 8192 / 1.
    base = [2 * math.pi / length for length in (100, 2048, 4096, 8192, 20000)]
    # 4096 makes 2 turns of 8192 positions: (2 - 1) / (4 - 1) of the way from slowed to kept.
    wanted = [1, 1, (2 / 3) / 8 + 1 / 3, 1 / 8, 1 / 8]
    assert [s / b for s, b in zip(llama3(base, LLAMA3), base, strict=True)] == pytest.approx(wanted)


def test_stale_frequencies_of_old_checkpoints_are_dropped() -> None:
    assert Llama().rename("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert Llama().rename("model.norm.weight") == "model.norm.weight"


@pytest.mark.parametrize(
    ("capability", "value"),
    [("architectures", "MistralForCausalLM"), ("model_types", "llama"), ("model_types", "mistral")],
)
def test_family_is_found_by_what_a_config_says(capability: str, value: str) -> None:
    assert Registry.of({("model", "llama"): SPEC}).match("model", capability, value) == ["llama"]
