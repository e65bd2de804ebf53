"""Mixtral 8x7B and 8x22B (arXiv:2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, Experts, MoE, dense_causal_lm, dense_parallel_plan
from pegboard.nn.dense import positive
from pegboard.nn.mixed import expert_counts, expert_rules
from pegboard.types import ParallelRule

EXPERT = ("w1", "w3", "w2")
"""What checkpoints call an expert's gate, up and down."""


class Mixtral(ModelFamily):
    """Mistral's attention, and in the place of each MLP a mixture whose chosen weights sum to 1."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        window = None if config.get("sliding_window") is None else positive(config, "sliding_window")
        hidden, inner = positive(config, "hidden_size"), positive(config, "intermediate_size")
        count, k = expert_counts(config, 8, 2)
        return dense_causal_lm(
            # Silent configs mean transformers' defaults.
            {"rope_theta": 1000000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, **config},
            window=lambda layer: window,
            mixture=lambda layer: MoE(
                hidden, Experts(count, hidden, inner, names=EXPERT), k, renormalise=True, index=layer
            ),
            mixture_name="block_sparse_moe",
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return (*expert_rules(EXPERT), *dense_parallel_plan(config))

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name
