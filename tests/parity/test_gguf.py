"""Toy models of transformers, written as GGUF files by the gguf package under its own map of names, against the model they came from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import build_model, open_model
from pegboard.plugins.load import Registry
from pegboard.weights import write_model

pytestmark = pytest.mark.peers

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 7}
LONGROPE = {
    "rope_theta": 10000.0,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
    "long_factor": [2.0, 4.0, 6.0, 7.0, 8.0, 9.0],
    "partial_rotary_factor": 0.75,
}
QWEN_MIXED = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma2": ("gemma2", "gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3", "gemma3_text", GEMMA),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", "olmoe", {"num_experts": 5, "num_experts_per_tok": 2, "clip_qkv": 0.8}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**QWEN_MIXED, "shared_expert_intermediate_size": 64}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**QWEN_MIXED, "norm_topk_prob": True, "head_dim": 32}),
    "phi3": ("phi3", "phi3", {"tie_word_embeddings": False, "sliding_window": 9}),
    "phi4-mini": (
        "phi3",
        "phi3",
        {"tie_word_embeddings": True, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
}


def peer(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    _, model_type, options = CASES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **options)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write(model: Any, arch: str, path: Path) -> None:
    """As the converters of llama.cpp do: norms of Gemma with 1 added, LongRoPE's factors as tensors, experts in one tensor."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if arch.startswith("gemma"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "gemma3":
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if getattr(config, "clip_qkv", None):
            writer.add_clamp_kqv(config.clip_qkv)
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
    if arch == "phi3":
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(
            int(config.hidden_size // config.num_attention_heads * rope["partial_rotary_factor"])
        )
        if rope["rope_type"] == "longrope":
            original = config.original_max_position_embeddings
            growth = config.max_position_embeddings / original
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(growth) / math.log(original)))
            for kind in ("long", "short"):
                factors = torch.tensor(rope[f"{kind}_factor"], dtype=torch.float32)
                writer.add_tensor(f"rope_factors_{kind}.weight", factors.numpy())
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith((".gate_up_proj", ".experts.down_proj")):
            parts = (
                {"gate": tensor.chunk(2, 1)[0], "up": tensor.chunk(2, 1)[1]} if "gate_up" in name else {"down": tensor}
            )
            for part, experts in parts.items():
                writer.add_tensor(f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight", experts.contiguous().numpy())
            continue
        if name.endswith("shared_expert_gate.weight"):
            tensor = tensor.squeeze()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        stored = tensor + 1 if arch.startswith("gemma") and name.endswith("norm.weight") else tensor
        own = names.get_name(name, try_suffixes=(".weight", ".bias")) or names.get_name(
            name.replace("mlp.gate", "block_sparse_moe.gate"), try_suffixes=(".weight",)
        )
        writer.add_tensor(own, stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CASES)
def test_logits_of_a_file_and_of_the_folder_written_from_it(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, arch = peer(name), CASES[name][0]
    write(model, arch, tmp_path / "toy.gguf")
    registry = Registry.discover()
    files = open_model(registry, str(tmp_path / "toy.gguf"))
    built = build_model(registry, files, platform="cpu", dtype="float32")
    write_model(tmp_path / "folder", files.config, files.tensors.items(), {})
    folder, info = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for length in (12, 40):  # on both sides of the windows, and of the toy's pretrained length
        ids = torch.randint(0, SIZES["vocab_size"], (length,), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            wanted = model(ids[None]).logits[0]
            logits = built.model.head(built.model(ids, built.context([length], torch.arange(length))))
            torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
            torch.testing.assert_close(folder(ids[None]).logits[0], wanted, atol=1e-4, rtol=0)
