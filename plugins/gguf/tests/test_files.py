"""A whole file as a model: names, row order, config, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pegboard.errors import ModelError
from pegboard_gguf.container import parse
from pegboard_gguf.files import GgufFiles, GgufFormat
from pegboard_gguf.rope import factors_to_llama3

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
Make = Callable[..., Any]


@pytest.fixture
def open_model(make_model: Make, make_file: Callable[[bytes], Path]) -> Callable[..., GgufFiles]:
    def make(arch: str = "llama", **options: Any) -> GgufFiles:
        return GgufFormat().open(str(make_file(make_model(arch, **options)[0])))

    return make


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_tensors_have_hugging_face_names_and_layout(open_model: Make, make_model: Make, arch: str) -> None:
    files, wanted = open_model(arch), make_model(arch)[1]
    assert files.tensors.keys() == wanted.keys()
    for name, tensor in files.tensors.items():
        loaded = tensor.load()
        assert tensor.shape == wanted[name].shape and loaded.dtype == tensor.dtype == torch.float32
        np.testing.assert_array_equal(loaded.numpy(), wanted[name], err_msg=name)
        middle = tensor.rows(3, 11)
        np.testing.assert_array_equal(middle.numpy(), wanted[name][3:11], err_msg=name)
        assert tensor.rows(5, 5).shape == (0, *tensor.shape[1:])
        with pytest.raises(IndexError):
            tensor.rows(0, tensor.shape[0] + 1)


def test_config_says_what_the_metadata_says(open_model: Make) -> None:
    files = open_model("llama", tied=True)
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 267,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": 263,
        "eos_token_id": 264,
    }
    assert expected.items() <= dict(files.config).items()
    assert not files.portable
    assert open_model("qwen2").config["tie_word_embeddings"] is False
    assert open_model("qwen3").config["architectures"] == ["Qwen3ForCausalLM"]


def test_window_ends_and_sampling(open_model: Make) -> None:
    extra = [
        ("llama.attention.sliding_window", U32, 128),
        ("tokenizer.ggml.eot_token_id", U32, 265),
        ("general.sampling.temp", F32, 0.5),
        ("general.sampling.top_k", I32, 20),
    ]
    files = open_model("llama", extra_pairs=extra)
    assert files.config["architectures"] == ["MistralForCausalLM"] and files.config["sliding_window"] == 128
    assert files.config["eos_token_id"] == [264, 265]
    assert files.generation_config == {
        "bos_token_id": 263,
        "eos_token_id": [264, 265],
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 20,
    }


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_factors_become_llama3_scaling(open_model: Make, factor: float) -> None:
    factors = _published_factors(16, 500000.0, factor, 1.0, 4.0, 8192).astype(np.float32)
    extra = [("llama.rope.freq_base", F32, 500000.0)]
    config = open_model("llama", extra_pairs=extra, extra_tensors={"rope_freqs.weight": factors}).config
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_llama3_bounds_are_fitted() -> None:
    factors = _published_factors(64, 500000.0, 4.0, 0.75, 2.5, 8192).astype(np.float32).astype(np.float64)
    found = factors_to_llama3(factors, 64, 500000.0, 8192, "a file")
    assert found is not None
    again = _published_factors(
        64, 500000.0, *(found[k] for k in ("factor", "low_freq_factor", "high_freq_factor")), 8192
    )
    np.testing.assert_allclose(again, factors, rtol=1e-5)


def _published_factors(dim: int, theta: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Llama 3.1's rule frequency by frequency, by wavelength, as its authors published it."""
    out = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * theta ** (i / dim)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out)


def test_unit_rope_factors_mean_no_scaling(open_model: Make) -> None:
    assert (
        open_model("llama", extra_tensors={"rope_freqs.weight": np.ones(8, np.float32)}).config["rope_scaling"] is None
    )


def test_linear_and_yarn_scaling(open_model: Make) -> None:
    kind, factor = ("llama.rope.scaling.type", STRING), ("llama.rope.scaling.factor", F32)
    linear = open_model("llama", extra_pairs=[(*kind, "linear"), (*factor, 2.0)])
    assert linear.config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    original = ("llama.rope.scaling.original_context_length", U32, 128)
    yarn = open_model("llama", extra_pairs=[(*kind, "yarn"), (*factor, 4.0), original])
    assert yarn.config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"extra_pairs": [("general.architecture", STRING, "lama")]}, "'lama'.*did you mean 'llama'"),
    "no architecture": ({"drop": ["general.architecture"]}, "general.architecture"),
    "missing key": ({"drop": ["llama.block_count"]}, "lacks the metadata key llama.block_count"),
    "missing epsilon": ({"drop": ["llama.attention.layer_norm_rms_epsilon"]}, "layer_norm_rms_epsilon"),
    "missing tensor": ({"drop": ["blk.1.ffn_up.weight"]}, "model.layers.1.mlp.up_proj.weight"),
    "missing embedding": ({"drop": ["token_embd.weight"]}, "token_embd.weight"),
    "unknown tensor": ({"extra_tensors": {"blk.0.extra.weight": np.ones(4, np.float32)}}, "blk.0.extra.weight"),
    "more layers": ({"extra_pairs": [("llama.block_count", U32, 4_000_000_000)]}, "4000000000 layers"),
    "wrong width": ({"extra_pairs": [("llama.feed_forward_length", U32, 128)]}, "gate_proj"),
    "a part": ({"extra_pairs": [("split.count", U32, 3)]}, "one of 3 parts"),
    "half a mixture": (
        {"extra_pairs": [("llama.expert_count", U32, 8)]},
        "lacks the metadata key llama.expert_used_count",
    ),
    "millions of experts": (
        {"extra_pairs": [("llama.expert_count", U32, 4_000_000), ("llama.expert_used_count", U32, 2)]},
        "expert_count is 4000000; expected 1 to 4096",
    ),
    "a mixture without experts": (
        {"extra_pairs": [("llama.expert_count", U32, 8), ("llama.expert_used_count", U32, 2)]},
        "blk.0.ffn_gate.weight",
    ),
    "other experts": (
        {
            "extra_pairs": [("llama.expert_count", U32, 8), ("llama.expert_used_count", U32, 2)],
            "extra_tensors": {"blk.0.ffn_up_exps.weight": np.ones((4, 8, 8), np.float32)},
        },
        "blk.0.ffn_up_exps.weight has shape .*; expected matrices of 8 experts",
    ),
    "uneven heads": (
        {"extra_pairs": [("llama.attention.head_count_kv", ARRAY, (I32, [2, 4]))]},
        "differs between layers",
    ),
    "zero heads": ({"extra_pairs": [("llama.attention.head_count", U32, 0)]}, "expected at least 1"),
    "partial rotary": ({"extra_pairs": [("llama.rope.dimension_count", U32, 8)]}, "dimension_count is 8"),
    "odd rope factors": ({"extra_tensors": {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}}, "rope_freqs"),
    "short rope factors": ({"extra_tensors": {"rope_freqs.weight": np.ones(4, np.float32)}}, "expected \\(8,\\)"),
    "negative base": ({"extra_pairs": [("llama.rope.freq_base", F32, -2.0)]}, "freq_base is -2.0"),
    "negative factor": (
        {"extra_pairs": [("llama.rope.scaling.type", STRING, "linear"), ("llama.rope.scaling.factor", F32, -2.0)]},
        "factor is -2.0",
    ),
    "unknown scaling": (
        {"extra_pairs": [("llama.rope.scaling.type", STRING, "odd"), ("llama.rope.scaling.factor", F32, 2.0)]},
        "scaling.type is 'odd'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_refused_by_name(open_model: Make, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        open_model("llama", **options)


def test_a_count_written_once_a_layer_is_read(open_model: Make) -> None:
    files = open_model("llama", extra_pairs=[("llama.attention.head_count_kv", ARRAY, (I32, [2, 2]))])
    assert files.config["num_key_value_heads"] == 2


def test_fingerprint_is_of_the_content(make_model: Make, tmp_path: Path) -> None:
    data = make_model("llama")[0]
    changed = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    prints = []
    for name, content in (("a.gguf", data), ("b.gguf", data), ("c.gguf", changed)):
        (tmp_path / name).write_bytes(content)
        prints.append(GgufFormat().open(str(tmp_path / name)).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_a_missing_file_and_writing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        GgufFormat().open(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match="not write"):
        GgufFormat().write(tmp_path / "out", {}, [], {})


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_model_is_refused_or_opened(make_model: Make, data: st.DataObject) -> None:
    factors = _published_factors(16, 500000.0, 8.0, 1.0, 4.0, 8192).astype(np.float32)
    sound = make_model("llama", extra_tensors={"rope_freqs.weight": factors}, tied=True)[0]
    header = parse(sound).data_start
    damaged = bytearray(sound)
    # The end of the file holds the rotary factors, which are read on opening.
    at = data.draw(st.one_of(st.integers(0, header - 1), st.integers(len(sound) - 32, len(sound) - 1)))
    piece = data.draw(
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\xc0\x7f"]))
    )
    damaged[at : at + len(piece)] = piece
    try:
        files = GgufFiles("damaged.gguf", parse(bytes(damaged)))
        assert files.files and files.generation_config is not None and files.fingerprint()
    except ModelError:
        return
    for tensor in files.tensors.values():
        assert tensor.load().shape == tensor.shape
