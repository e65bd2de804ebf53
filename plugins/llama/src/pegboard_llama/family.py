"""Llama (arXiv:2302.13971, 2307.09288, 2407.21783), SmolLM2 (2502.02737) and Mistral (2310.06825)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.nn.dense import positive
from pegboard.types import ParallelRule


class Llama(ModelFamily):
    """Gated SiLU layers and grouped-query rotary attention; biases and Mistral's sliding window as the config says."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        bias = bool(config.get("attention_bias", False))
        window = _window(config)
        return dense_causal_lm(
            config,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            window=lambda layer: window,
            scalings={"llama3": llama3},
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(config)

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name


def _window(config: Mapping[str, Any]) -> int | None:
    """Return the sliding window, which Mistral alone has: 4096 where config.json is silent, none where it says null."""
    architectures = config.get("architectures") or []
    mistral = "MistralForCausalLM" in architectures or (not architectures and config.get("model_type") == "mistral")
    if not mistral or config.get("sliding_window", 4096) is None:
        return None
    return positive(config, "sliding_window", 4096)


def llama3(base: list[float], scaling: Mapping[str, Any]) -> list[float]:
    """Scale the inverse frequencies as Llama 3.1 does: long waves are slowed by `factor`, short ones kept, those between blended."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    out = []
    for f in base:
        turns = original * f / (2 * math.pi)
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append((1 - blend) * f / factor + blend * f)
    return out
