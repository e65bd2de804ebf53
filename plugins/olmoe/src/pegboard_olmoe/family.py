"""OLMoE 1B-7B (arXiv:2409.02060)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, Experts, MoE, dense_causal_lm, dense_parallel_plan
from pegboard.nn.dense import positive
from pegboard.nn.mixed import expert_counts, expert_rules
from pegboard.nn.rotary import positive_number
from pegboard.types import ParallelRule


class Olmoe(ModelFamily):
    """A mixture in every layer; q and k are normed over their whole width, then q, k and v clipped where the config asks for it."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        hidden, inner = positive(config, "hidden_size"), positive(config, "intermediate_size")
        count, k = expert_counts(config, 64, 8)
        bias = bool(config.get("attention_bias", False))
        renormalise = bool(config.get("norm_topk_prob", False))
        return dense_causal_lm(
            # Silent configs mean transformers' defaults.
            {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, **config},
            qkv_bias=bias,
            out_bias=bias,
            qk_norm="whole",
            clip=None if config.get("clip_qkv") is None else positive_number(config["clip_qkv"], "clip_qkv"),
            mixture=lambda layer: MoE(hidden, Experts(count, hidden, inner), k, renormalise=renormalise, index=layer),
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        # Norms over the whole width need all heads: every rank computes attention as a whole.
        attention = ParallelRule("*.self_attn.*", "replicate")
        return (attention, *expert_rules(), *dense_parallel_plan(config))

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name
