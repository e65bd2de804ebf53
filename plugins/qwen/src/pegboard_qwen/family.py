"""Qwen2 and 2.5 (arXiv:2407.10671, 2412.15115) and Qwen3 (2505.09388), dense and as mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pegboard.errors import ModelError
from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, Experts, MoE, dense_causal_lm, dense_parallel_plan
from pegboard.nn.dense import MOST_LAYERS, positive
from pegboard.nn.mixed import expert_counts, expert_rules
from pegboard.types import ParallelRule

_LAYER_TYPES = ("full_attention", "sliding_attention")


class Qwen(ModelFamily):
    """Qwen2 has biases on q, k and v; Qwen3 has none by default, norms over the heads of q and k, and a head size of its own.

    Of a mixture some layers may be dense (`mlp_only_layers`, `decoder_sparse_step`). Qwen2's has an expert that every row uses.
    """

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        config = _with_head_dim(config)
        third, mixed = _third(config), _mixed(config)
        bias = bool(config.get("attention_bias", False))
        return dense_causal_lm(
            config,
            qkv_bias=bias if third else bool(config.get("qkv_bias", True)) or not mixed,
            out_bias=bias and third,
            qk_norm=third,
            window=lambda layer: (_mixed_window if mixed else _window)(config, layer),
            mixture=_mixtures(config) if mixed else lambda layer: None,
        )

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        plan = dense_parallel_plan(_with_head_dim(config))
        return (*expert_rules(), *plan) if _mixed(config) else plan

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name


def _third(config: Mapping[str, Any]) -> bool:
    """Tell Qwen3 from Qwen2."""
    return _is(config, "Qwen3ForCausalLM", "qwen3") or _is(config, "Qwen3MoeForCausalLM", "qwen3_moe")


def _mixed(config: Mapping[str, Any]) -> bool:
    """Tell a mixture of experts."""
    return _is(config, "Qwen2MoeForCausalLM", "qwen2_moe") or _is(config, "Qwen3MoeForCausalLM", "qwen3_moe")


def _is(config: Mapping[str, Any], architecture: str, model_type: str) -> bool:
    architectures = config.get("architectures") or []
    return architecture in architectures or (not architectures and config.get("model_type") == model_type)


def _with_head_dim(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers gives the dense Qwen3 heads of 128 where config.json is silent.
    return {"head_dim": 128, **config} if _third(config) and not _mixed(config) else config


def _mixtures(config: Mapping[str, Any]) -> Callable[[int], MoE | None]:
    """Return what makes the mixture of a layer; None for a dense layer. Raises ModelError naming the key that is wrong.

    Where config.json is silent, transformers' defaults count.
    """
    third = _third(config)
    dense, step = config.get("mlp_only_layers") or [], positive(config, "decoder_sparse_step", 1)
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise ModelError(
            f"the config's mlp_only_layers is {dense!r}; a list of numbers is needed",
            fix="mend the model's config.json",
        )
    hidden, layers = positive(config, "hidden_size"), positive(config, "num_hidden_layers", most=MOST_LAYERS)
    count, k = expert_counts(config, *((128, 8) if third else (60, 4)))
    inner = positive(config, "moe_intermediate_size", 768 if third else 1408)
    shared = None if third else positive(config, "shared_expert_intermediate_size", 5632)
    sparse = [layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0]

    def mixture(layer: int) -> MoE | None:
        if layer not in sparse:
            return None
        experts = Experts(count, hidden, inner)
        renormalise = bool(config.get("norm_topk_prob", False))
        return MoE(hidden, experts, k, renormalise=renormalise, shared=shared, index=sparse.index(layer))

    return mixture


def _mixed_window(config: Mapping[str, Any], layer: int) -> int | None:
    """Return the sliding window of a layer of a mixture.

    All layers of Qwen3's slide where any does. Of Qwen2's those do that `layer_types` says; where config.json is silent, every second one
    of those before `max_window_layers`, as transformers has it.
    """
    if not config.get("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return None
    if not _third(config) and config.get("layer_types") is None:
        slides = layer % 2 == 0 and layer < int(config.get("max_window_layers", 28))
        return positive(config, "sliding_window", 4096) if slides else None
    return positive(config, "sliding_window", 4096) if _third(config) else _window(config, layer)


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
