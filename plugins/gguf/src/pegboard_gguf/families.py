"""What single architectures have in config.json beside what all of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pegboard.errors import ModelError
from pegboard_gguf.container import Container

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
    {"llama": _llama, "qwen2": _qwen, "qwen3": _qwen, "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3}
)
"""By the architecture that a file names."""
