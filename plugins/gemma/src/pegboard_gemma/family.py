"""Gemma 2 (arXiv:2408.00118) and Gemma 3 (2503.19786): their text models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.model import ModelFamily
from pegboard.nn import Attention, CausalLM, Decoder, GatedMLP, Rotary, dense_parallel_plan
from pegboard.nn.dense import check_groups, head_size, positive
from pegboard.nn.norm import OffsetRMSNorm
from pegboard.nn.rotary import positive_number
from pegboard.types import AttentionSpec, ParallelRule
from pegboard_gemma import settings
from pegboard_gemma.layers import SandwichLayer


class Gemma(ModelFamily):
    """Gated GELU layers between norms whose weights count from 1, embeddings scaled by sqrt(hidden size), layers that slide and ones
    that do not. Gemma 2 caps logits; Gemma 3 norms the heads of q and k and turns the two kinds of layers by different angles.
    """

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        config = settings.complete(config)
        hidden, inner = positive(config, "hidden_size"), positive(config, "intermediate_size")
        heads, kv_heads = positive(config, "num_attention_heads"), positive(config, "num_key_value_heads")
        check_groups(heads, kv_heads)
        eps = positive_number(config.get("rms_norm_eps", 1e-6), "rms_norm_eps")
        scale = positive_number(config.get("query_pre_attn_scalar", 256), "query_pre_attn_scalar") ** -0.5
        head_dim, bias = head_size(config), bool(config.get("attention_bias", False))
        third = settings.generation(config) is settings.GEMMA3
        attention_cap, head_cap = settings.softcaps(config)
        tables = settings.rope(config)

        def layer(index: int, window: int | None) -> SandwichLayer:
            group = 0 if window is None else 1
            spec = AttentionSpec(index, heads, kv_heads, head_dim, scale, window, attention_cap, group)
            attention = Attention(
                hidden,
                spec,
                bias=bias,
                out_bias=bias,
                qk_norm_eps=eps if third else None,
                norm=OffsetRMSNorm,
                rope=min(group, len(tables) - 1),
            )
            return SandwichLayer(attention, GatedMLP(hidden, inner, activation="gelu_tanh"), hidden, eps)

        max_positions = positive(config, "max_position_embeddings")
        layers = [layer(index, window) for index, window in enumerate(settings.windows(config))]
        decoder = Decoder(positive(config, "vocab_size"), hidden, layers, OffsetRMSNorm(hidden, eps))
        return CausalLM(
            decoder,
            [Rotary(head_dim, theta, scaling, max_positions) for theta, scaling in tables],
            tied=bool(config["tie_word_embeddings"]),
            max_positions=max_positions,
            embedding_scale=hidden**0.5,
            softcap=head_cap,
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(settings.complete(config))

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name
