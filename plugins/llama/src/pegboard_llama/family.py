"""Llama (arXiv:2302.13971, 2307.09288, 2407.21783), SmolLM2 (2502.02737) and Mistral (2310.06825)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.types import ParallelRule


class Llama(ModelFamily):
    """Gated SiLU layers and grouped-query rotary attention; biases and Mistral's sliding window as the config says."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        bias = bool(config.get("attention_bias", False))
        window = config.get("sliding_window")
        return dense_causal_lm(
            config,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            window=lambda layer: window,
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(config)

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name
