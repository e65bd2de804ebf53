from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.nn import CausalLM
from pegboard.plugins.load import Registry
from pegboard_qwen.family import Qwen
from pegboard_qwen.plugin import SPEC

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
QWEN2 = {**SIZES, "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**SIZES, "architectures": ["Qwen3ForCausalLM"], "head_dim": 8}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}
FULL, SLIDES = "full_attention", "sliding_attention"


def build(config: dict[str, Any], **changes: Any) -> CausalLM:
    with torch.device("meta"):
        return Qwen().build({**config, **changes})


def names(model: CausalLM, ending: str) -> set[str]:
    """Last module names of the first layer's parameters that end so."""
    found = [name for name, _ in model.named_parameters() if name.startswith("model.layers.0.self_attn.")]
    return {name.split(".")[-2] for name in found if name.endswith(ending)}


def test_qwen2_has_biases_on_queries_keys_and_values() -> None:
    model = build(QWEN2)
    assert names(model, ".bias") == {"q_proj", "k_proj", "v_proj"}
    assert names(model, "_norm.weight") == set()


def test_qwen3_has_norms_over_heads_and_no_bias() -> None:
    model = build(QWEN3)
    assert names(model, ".bias") == set()
    assert names(model, "_norm.weight") == {"q_norm", "k_norm"}
    assert model.model.layers[0].self_attn.q_norm.weight.shape == (8,)


def test_qwen3_may_have_biases_on_all_projections() -> None:
    assert names(build(QWEN3, attention_bias=True), ".bias") == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_qwen2_knows_no_bias_on_the_output() -> None:
    assert names(build(QWEN2, attention_bias=True), ".bias") == {"q_proj", "k_proj", "v_proj"}


def test_silent_head_size_is_128_in_qwen3_and_a_share_in_qwen2() -> None:
    silent = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    assert build(silent).attention_specs[0].head_dim == 128
    assert build(QWEN2).attention_specs[0].head_dim == 4


def test_model_type_decides_where_no_architecture_is_named() -> None:
    for kind, norms in (("qwen2", set()), ("qwen3", {"q_norm", "k_norm"})):
        assert names(build({**SIZES, "model_type": kind, "head_dim": 8}), "_norm.weight") == norms


@pytest.mark.parametrize("config", [QWEN2, QWEN3])
@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [None, None, None]),
        ({"sliding_window": 5}, [None, None, None]),
        ({**SLIDING, "use_sliding_window": False, "max_window_layers": 0}, [None, None, None]),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, [None, None, None]),
        (SLIDING, [None, None, None]),
        ({**SLIDING, "max_window_layers": 1}, [None, 5, 5]),
        ({"use_sliding_window": True, "max_window_layers": 2}, [None, None, 4096]),
        ({**SLIDING, "max_window_layers": 0}, [5, 5, 5]),
        ({**SLIDING, "max_window_layers": 0, "layer_types": [FULL, SLIDES, FULL]}, [None, 5, None]),
    ],
)
def test_which_layers_slide(config: dict[str, Any], changes: dict[str, Any], windows: list[int | None]) -> None:
    assert [spec.window for spec in build(config, **changes).attention_specs] == windows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": [FULL, SLIDES]}, r"layer_types\[2\] is missing"),
        ({"layer_types": [FULL, "chunked_attention", FULL]}, r"layer_types\[1\] is 'chunked_attention'"),
        ({"sliding_window": 0, "max_window_layers": 0}, "sliding_window is 0"),
        ({"sliding_window": "5", "max_window_layers": 0}, "sliding_window is '5'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
    ],
)
def test_what_is_not_done_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(QWEN2, **{**SLIDING, **changes})


@pytest.mark.parametrize(
    ("config", "name", "style", "unit"),
    [
        (QWEN2, "model.layers.1.self_attn.k_proj.bias", "column", 4),
        (QWEN3, "model.layers.1.self_attn.q_proj.weight", "column", 8),
        (QWEN3, "model.layers.1.self_attn.o_proj.weight", "row", 8),
        (QWEN3, "model.layers.1.self_attn.q_norm.weight", "replicate", 1),
        (QWEN3, "lm_head.weight", "vocab", 1),
    ],
)
def test_parallel_plan_keeps_heads_whole(config: dict[str, Any], name: str, style: str, unit: int) -> None:
    rule = next(rule for rule in Qwen().parallel_plan(config) if fnmatchcase(name, rule.pattern))
    assert (rule.style, rule.unit) == (style, unit)


def test_parallel_plan_knows_the_silent_head_size() -> None:
    silent = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    assert Qwen().parallel_plan(silent)[0].unit == 128


def test_stale_frequencies_of_old_checkpoints_are_dropped() -> None:
    assert Qwen().rename("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert Qwen().rename("model.norm.weight") == "model.norm.weight"


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_family_is_found_by_architecture(architecture: str) -> None:
    assert Registry.of({("model", "qwen"): SPEC}).match("model", "architectures", architecture) == ["qwen"]
