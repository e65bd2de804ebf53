"""Gemma and Phi: what their files say of them, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.errors import ModelError
from pegboard_gguf.files import GgufFiles, GgufFormat

U32, F32, ARRAY, BOOL = 4, 6, 9, 7
FULL, SLIDES = "full_attention", "sliding_attention"
Make = Callable[..., Any]


@pytest.fixture
def open_model(make_model: Make, make_file: Callable[[bytes], Path]) -> Callable[..., GgufFiles]:
    def make(arch: str, *extra: tuple[str, int, Any], **options: Any) -> GgufFiles:
        pairs = [(f"{arch}.{key}", kind, value) for key, kind, value in extra]
        return GgufFormat().open(str(make_file(make_model(arch, extra_pairs=pairs, **options)[0])))

    return make


def test_gemma2(open_model: Make) -> None:
    expected = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 16,
        "sliding_window": 9,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    }
    assert expected.items() <= dict(open_model("gemma2").config).items()
    capped = open_model("gemma2", ("attn_logit_softcapping", F32, 7.0), ("final_logit_softcapping", F32, 5.0))
    assert capped.config["attn_logit_softcapping"] == 7.0 and capped.config["final_logit_softcapping"] == 5.0


def test_gemma3(open_model: Make) -> None:
    linear = [("rope.scaling.factor", F32, 8.0), ("rope.freq_base", F32, 1e6)]
    config = open_model("gemma3", ("rope.freq_base_swa", F32, 5000.0), *linear).config
    expected = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "layer_types": [SLIDES, SLIDES],
        "rope_theta": 1e6,
        "rope_local_base_freq": 5000.0,
        "final_logit_softcapping": None,
    }
    assert expected.items() <= dict(config).items()
    assert open_model("gemma3").config["rope_local_base_freq"] == 10000.0


@pytest.mark.parametrize(
    ("pairs", "kinds"),
    [
        ([("attention.sliding_window_pattern", U32, 2)], [SLIDES, FULL]),
        ([("attention.sliding_window_pattern", ARRAY, (BOOL, [False, True]))], [FULL, SLIDES]),
        ([("attention.sliding_window", U32, 0)], [FULL, FULL]),
    ],
)
def test_which_layers_of_gemma3_slide(open_model: Make, pairs: list[Any], kinds: list[str]) -> None:
    assert open_model("gemma3", *pairs).config["layer_types"] == kinds


def test_a_pattern_must_have_an_entry_for_each_layer(open_model: Make) -> None:
    with pytest.raises(ModelError, match="sliding_window_pattern has 3 entries for 2 layers"):
        open_model("gemma3", ("attention.sliding_window_pattern", ARRAY, (BOOL, [True] * 3)))


def test_the_largest_gemma_scales_queries_by_the_share_of_a_head() -> None:
    from pegboard_gguf.families import _gemma

    config = {"hidden_size": 4608, "num_attention_heads": 32, "head_dim": 128, "num_hidden_layers": 46}
    assert _gemma(46, config)["query_pre_attn_scalar"] == 144
    assert _gemma(62, config)["query_pre_attn_scalar"] == 128


def longrope(*, turned: int = 12, **changes: np.ndarray) -> dict[str, np.ndarray]:
    factors = {
        "rope_factors_short.weight": np.linspace(1, 2, turned // 2, dtype=np.float32),
        "rope_factors_long.weight": np.linspace(1.1, 9, turned // 2, dtype=np.float32),
    }
    return {**factors, **changes}


LENGTHS = [("rope.scaling.original_context_length", U32, 128), ("rope.dimension_count", U32, 12)]


def test_phi_with_longrope(open_model: Make) -> None:
    usual = math.sqrt(1 + math.log(4) / math.log(128))
    files = open_model("phi3", *LENGTHS, ("rope.scaling.attn_factor", F32, usual), extra_tensors=longrope())
    config = files.config
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert (config["partial_rotary_factor"], config["original_max_position_embeddings"]) == (0.75, 128)
    # Three keys, as older versions of transformers insist on; the factors as the shortest decimals.
    assert config["rope_scaling"] == {
        "type": "longrope",
        "short_factor": [1.0, 1.2, 1.4, 1.6, 1.8, 2.0],
        "long_factor": [1.1, 2.68, 4.26, 5.84, 7.42, 9.0],
    }
    assert config["sliding_window"] is None
    assert "rope_factors_long.weight" not in files.tensors
    other = open_model("phi3", *LENGTHS, ("rope.scaling.attn_factor", F32, 1.5), extra_tensors=longrope())
    assert other.config["rope_scaling"]["attention_factor"] == 1.5


def test_phi_without(open_model: Make) -> None:
    config = open_model("phi3", ("attention.sliding_window", U32, 31)).config
    assert config["sliding_window"] == 31 and config["rope_scaling"] is None
    assert "partial_rotary_factor" not in config


@pytest.mark.parametrize(
    ("pairs", "tensors", "message"),
    [
        (LENGTHS[1:], longrope(), "original_context_length is None"),
        (LENGTHS, longrope(turned=16), r"rope_factors_short.weight has shape \(8,\); expected \(6,\)"),
        (LENGTHS, {"rope_factors_long.weight": np.ones(6, np.float32)}, r"rope_factors_short.weight has shape \(0,\)"),
        ([("rope.dimension_count", U32, 7)], {}, "rope.dimension_count is 7; expected an even number"),
        ([("rope.dimension_count", U32, 20)], {}, "rope.dimension_count is 20; expected an even number"),
    ],
)
def test_damaged_rotary_settings_are_named(
    open_model: Make, pairs: list[Any], tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        open_model("phi3", *pairs, extra_tensors=tensors)


def test_heads_of_others_are_turned_whole(open_model: Make) -> None:
    with pytest.raises(ModelError, match=r"rope\.dimension_count is 12 but heads are 16 wide"):
        open_model("gemma2", ("rope.dimension_count", U32, 12))
