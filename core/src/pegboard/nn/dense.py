"""The dense pre-norm decoder that most families are: built from the keys of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pegboard.errors import ModelError
from pegboard.nn.attention import Attention
from pegboard.nn.causal_lm import CausalLM, Decoder, DecoderLayer
from pegboard.nn.mlp import GatedMLP
from pegboard.nn.moe import MoE
from pegboard.nn.norm import RMSNorm
from pegboard.nn.rotary import Rotary, Scaling, positive_number, rope_settings
from pegboard.types import AttentionSpec, ParallelRule

MOST_LAYERS, WIDEST_HEAD = 4096, 65536
"""Modules and frequencies are made before any tensor is compared: a hostile config must not make a billion of them."""


def dense_causal_lm(
    config: Mapping[str, Any],
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool | Literal["whole"] = False,
    clip: float | None = None,
    fused: bool = False,
    rotary_share: float = 1.0,
    window: Callable[[int], int | None] = lambda layer: None,
    mixture: Callable[[int], MoE | None] = lambda layer: None,
    mixture_name: str = "mlp",
    scalings: Mapping[str, Scaling] = MappingProxyType({}),
) -> CausalLM:
    """Return an empty decoder of RMS norms, grouped-query rotary attention and gated SiLU layers.

    qkv_bias, out_bias, mlp_bias: which projections have a bias. qk_norm: RMS norms over each head of q and k, or over all of them
    ("whole"). clip: largest magnitude of q, k and v behind them.
    fused: q, k and v are one parameter, gate and up another. rotary_share: of each head's dimensions, the first of which turn.
    window: layer index -> its sliding window, None for full attention. mixture: layer index -> what stands in the place of its MLP, None
    for nothing; under `mixture_name`. scalings: rotary ones of the family, by `rope_type`.
    Raises ModelError naming the key of `config` that is missing, ill-typed or asks for something else.
    """
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"the config's hidden_act is {activation!r}", fix="this family computes 'silu' only")
    hidden = positive(config, "hidden_size")
    heads = positive(config, "num_attention_heads")
    kv_heads = positive(config, "num_key_value_heads", heads)
    head_dim = head_size(config)
    eps = positive_number(config.get("rms_norm_eps", 1e-6), "rms_norm_eps")
    check_groups(heads, kv_heads)

    def layer(index: int) -> DecoderLayer:
        window_size = window(index)
        spec = AttentionSpec(
            index, heads, kv_heads, head_dim, head_dim**-0.5, window_size, group=0 if window_size is None else 1
        )
        attention = Attention(
            hidden,
            spec,
            bias=qkv_bias,
            out_bias=out_bias,
            qk_norm_eps=eps if qk_norm else None,
            whole_norm=qk_norm == "whole",
            clip=clip,
            fused=fused,
        )
        experts = mixture(index)
        if experts is not None:
            return DecoderLayer(attention, experts, hidden, eps, mlp_name=mixture_name)
        mlp = GatedMLP(hidden, positive(config, "intermediate_size"), mlp_bias, fused=fused)
        return DecoderLayer(attention, mlp, hidden, eps)

    max_positions = positive(config, "max_position_embeddings", 2048)
    theta, scaling = rope_settings(config)
    layers = [layer(index) for index in range(positive(config, "num_hidden_layers", most=MOST_LAYERS))]
    decoder = Decoder(positive(config, "vocab_size"), hidden, layers, RMSNorm(hidden, eps))
    rotary = Rotary(int(head_dim * rotary_share), theta, scaling, max_positions, scalings)
    return CausalLM(decoder, [rotary], tied=bool(config.get("tie_word_embeddings", False)), max_positions=max_positions)


def dense_parallel_plan(config: Mapping[str, Any], *, fused: bool = False) -> Sequence[ParallelRule]:
    """Return how the parameters of `dense_causal_lm` split over a tensor-parallel group: whole heads, then MLP columns."""
    unit = head_size(config)
    joined: tuple[ParallelRule, ...] = ()
    if fused:
        heads, inner = positive(config, "num_attention_heads"), positive(config, "intermediate_size")
        key = unit * positive(config, "num_key_value_heads", heads)
        joined = (
            ParallelRule("*.self_attn.qkv_proj.*", "column", unit, (unit * heads, key, key)),
            ParallelRule("*.mlp.gate_up_proj.*", "column", parts=(inner, inner)),
        )
    return (
        *joined,
        ParallelRule("*.self_attn.[qkv]_proj.*", "column", unit),
        ParallelRule("*.self_attn.o_proj.weight", "row", unit),
        ParallelRule("*.mlp.gate_proj.*", "column"),
        ParallelRule("*.mlp.up_proj.*", "column"),
        ParallelRule("*.mlp.down_proj.weight", "row"),
        ParallelRule("*embed_tokens.weight", "vocab"),
        ParallelRule("lm_head.weight", "vocab"),
        ParallelRule("*", "replicate"),
    )


def check_groups(heads: int, kv_heads: int) -> None:
    """Raise ModelError unless each head of keys serves as many heads of queries as any other."""
    if heads % kv_heads:
        raise ModelError(
            f"the config's num_attention_heads is {heads}, no multiple of its num_key_value_heads, {kv_heads}",
            fix="mend the model's config.json",
        )


def head_size(config: Mapping[str, Any]) -> int:
    """Return `head_dim`, or what follows from the hidden size where the config leaves it out."""
    if config.get("head_dim") is not None:
        return positive(config, "head_dim", most=WIDEST_HEAD)
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    if hidden % heads:
        raise ModelError(
            f"the config's hidden_size is {hidden}, no multiple of its num_attention_heads, {heads}, and head_dim is missing",
            fix="mend the model's config.json",
        )
    return positive({"head_dim": hidden // heads}, "head_dim", most=WIDEST_HEAD)


def positive(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
    """Return a positive integer of the config, of at most `most`. Raises ModelError naming the key and what was found."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = "is missing" if value is None else f"is {value!r}"
        raise ModelError(
            f"the config's {key} {found}; a positive integer is needed", fix="mend the model's config.json"
        )
    if value > most:
        raise ModelError(
            f"the config's {key} is {value}; at most {most} is believed", fix="mend the model's config.json"
        )
    return value
