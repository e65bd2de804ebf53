"""Qwen2 and 2.5 (arXiv:2407.10671, 2412.15115) and dense Qwen3 (2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.errors import ModelError
from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.nn.dense import positive
from pegboard.types import ParallelRule

_LAYER_TYPES = ("full_attention", "sliding_attention")


class Qwen(ModelFamily):
    """Qwen2 has biases on q, k and v; Qwen3 has none by default, norms over the heads of q and k, and a head size of its own."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        config = _with_head_dim(config)
        bias = bool(config.get("attention_bias", False))
        return dense_causal_lm(
            config,
            qkv_bias=bias or not _third(config),
            out_bias=bias and _third(config),
            qk_norm=_third(config),
            window=lambda layer: _window(config, layer),
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(_with_head_dim(config))

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name


def _third(config: Mapping[str, Any]) -> bool:
    """Tell Qwen3 from Qwen2."""
    architectures = config.get("architectures") or []
    return "Qwen3ForCausalLM" in architectures or (not architectures and config.get("model_type") == "qwen3")


def _with_head_dim(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers gives Qwen3 heads of 128 where config.json is silent.
    return {"head_dim": 128, **config} if _third(config) else config


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    """Return the layer's sliding window: by `layer_types` where given, else from `max_window_layers` on.

    Where config.json is silent, transformers' defaults count: windows of 4096, from layer 28 on.
    Raises ModelError naming the key that is wrong.
    """
    if not config.get("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return None
    types = config.get("layer_types")
    if types is None:
        slides = layer >= int(config.get("max_window_layers", 28))
    elif layer < len(types) and types[layer] in _LAYER_TYPES:
        slides = types[layer] == "sliding_attention"
    else:
        found = repr(types[layer]) if layer < len(types) else "missing"
        raise ModelError(
            f"the config's layer_types[{layer}] is {found}; {' or '.join(_LAYER_TYPES)} is needed",
            fix="mend the model's config.json, or use a model of a family that has such layers",
        )
    return positive(config, "sliding_window", 4096) if slides else None
