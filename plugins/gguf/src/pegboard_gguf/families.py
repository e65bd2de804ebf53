"""What single architectures have in config.json beside what all of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pegboard.errors import ModelError
from pegboard_gguf.container import Container
from pegboard_gguf.names import MIXTRAL

MOST_EXPERTS = 4096
"""Of a layer: a hostile file must not make names for millions."""

Addition = Callable[[Container, str, Mapping[str, Any]], dict[str, Any]]
"""(container, prefix of its keys, config so far) -> keys to set."""


def _llama(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"mlp_bias": "blk.0.ffn_up.bias" in container.tensors}
    if window := container.metadata.integer(f"{prefix}.attention.sliding_window"):
        # Only Mistral of this family has a window; Hugging Face's Llama ignores the key.
        more |= {"sliding_window": window, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    return more


def _qwen(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    window = container.metadata.integer(f"{prefix}.attention.sliding_window")
    return {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 0} if window else {}


def _mixture(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all mixtures have."""
    metadata, counts = container.metadata, {}
    for key, name in (("num_experts", "expert_count"), ("num_experts_per_tok", "expert_used_count")):
        counts[key] = value = metadata.need(f"{prefix}.{name}")
        if not 1 <= value <= MOST_EXPERTS:
            raise ModelError(
                f"{container.where}: the metadata key {prefix}.{name} is {value}; expected 1 to {MOST_EXPERTS}"
            )
    return {**counts, "output_router_logits": False}


def _mixtral(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    more = _mixture(container, prefix, config)
    window = container.metadata.integer(f"{prefix}.attention.sliding_window") or None
    return {**more, "num_local_experts": more.pop("num_experts"), "sliding_window": window}


def _olmoe(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    # Files do not say whether the chosen weights are made to sum to 1: those of the released models are not.
    clip = container.metadata.number(f"{prefix}.attention.clamp_kqv") or None
    return {**_mixture(container, prefix, config), "norm_topk_prob": False, "clip_qkv": clip}


def _qwen_mixture(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Files do not say whether the chosen weights are made to sum to 1: Qwen3's are, Qwen2's are not."""
    inner = {"moe_intermediate_size": _rows(container, "blk.0.ffn_gate_exps.weight", 1)}
    if prefix == "qwen2moe":
        inner["shared_expert_intermediate_size"] = _rows(container, "blk.0.ffn_gate_shexp.weight", 0)
        inner["qkv_bias"] = config["attention_bias"]
    more = {**_mixture(container, prefix, config), **inner, "norm_topk_prob": prefix == "qwen3moe"}
    return {**more, "decoder_sparse_step": 1, "mlp_only_layers": []}


def _rows(container: Container, name: str, axis: int) -> int:
    """Return a size that old files tell by the shape of a tensor alone."""
    info = container.tensors.get(name)
    if info is None or len(info.shape) != axis + 2:
        raise ModelError(f"{container.where} lacks the tensor {name}", fix="convert or download it again")
    return info.shape[axis]


def _gemma(largest: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """largest: layers of the generation's largest model. It alone scales queries by the share that a head has of the hidden size; all
    others by the size of a head. Files do not say.
    """
    shared = config["hidden_size"] // config["num_attention_heads"]
    scalar = shared if config["num_hidden_layers"] == largest else config["head_dim"]
    activation = "gelu_pytorch_tanh"
    return {"hidden_act": activation, "hidden_activation": activation, "query_pre_attn_scalar": scalar}


def _gemma2(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    metadata = container.metadata
    return {
        **_gemma(46, config),
        "sliding_window": metadata.integer(f"{prefix}.attention.sliding_window") or 4096,
        "attn_logit_softcapping": metadata.number(f"{prefix}.attn_logit_softcapping") or 50.0,
        "final_logit_softcapping": metadata.number(f"{prefix}.final_logit_softcapping") or 30.0,
    }


def _gemma3(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    metadata, layers = container.metadata, config["num_hidden_layers"]
    window = metadata.integer(f"{prefix}.attention.sliding_window")
    key = f"{prefix}.attention.sliding_window_pattern"
    if hasattr(metadata.get(key), "dtype"):
        slides = [bool(value) for value in np.asarray(metadata.numbers(key))]
    else:
        pattern = metadata.integer(key) or 6
        slides = [bool((layer + 1) % pattern) for layer in range(layers)]
    if len(slides) != layers:
        raise ModelError(f"{container.where}: {key} has {len(slides)} entries for {layers} layers")
    kinds = ["sliding_attention" if window and slid else "full_attention" for slid in slides]
    return {
        **_gemma(62, config),
        "sliding_window": window or None,
        "layer_types": kinds,
        "rope_local_base_freq": metadata.number(f"{prefix}.rope.freq_base_swa") or 10000.0,
        "final_logit_softcapping": metadata.number(f"{prefix}.final_logit_softcapping") or None,
    }


def _phi3(container: Container, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    metadata = container.metadata
    more: dict[str, Any] = {"sliding_window": metadata.integer(f"{prefix}.attention.sliding_window") or None}
    if "pad_token_id" not in config:
        more["pad_token_id"] = None  # silence would mean 32000
    turned = metadata.integer(f"{prefix}.rope.dimension_count")
    if turned is not None and turned != config["head_dim"]:
        more["partial_rotary_factor"] = turned / config["head_dim"]
    if original := metadata.integer(f"{prefix}.rope.scaling.original_context_length"):
        more["original_max_position_embeddings"] = original
    return more


ADDITIONS: Mapping[str, Addition] = MappingProxyType(
    {
        "llama": _llama,
        MIXTRAL: _mixtral,
        "olmoe": _olmoe,
        "qwen2": _qwen,
        "qwen2moe": _qwen_mixture,
        "qwen3": _qwen,
        "qwen3moe": _qwen_mixture,
        "gemma2": _gemma2,
        "gemma3": _gemma3,
        "phi3": _phi3,
    }
)
"""By the key of `ARCHITECTURES`."""
