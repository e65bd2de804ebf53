"""What a Gemma config asks for, with the values that transformers takes where it is silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pegboard.errors import ModelError
from pegboard.nn.dense import MOST_LAYERS, positive
from pegboard.nn.rotary import positive_number, rope_settings

FULL, SLIDING = "full_attention", "sliding_attention"
_MEND = "mend the model's config.json"


@dataclass(frozen=True, slots=True)
class Generation:
    """What differs between Gemma 2 and 3.

    pattern: every so many layers one has full attention, the others slide. softcaps: of attention logits and of the head's.
    theta: rotary base of layers with full attention. local_theta: of those that slide; None where all share one.
    """

    number: int
    pattern: int
    softcaps: tuple[float | None, float | None]
    max_positions: int
    theta: float
    local_theta: float | None


GEMMA2 = Generation(2, 2, (50.0, 30.0), 8192, 10000.0, None)
GEMMA3 = Generation(3, 6, (None, None), 131072, 1000000.0, 10000.0)


def generation(config: Mapping[str, Any]) -> Generation:
    """Tell Gemma 3 from Gemma 2."""
    architectures = config.get("architectures") or []
    if architectures:
        return GEMMA3 if "Gemma3ForCausalLM" in architectures else GEMMA2
    return GEMMA3 if config.get("model_type") == "gemma3_text" else GEMMA2


def complete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config with the sizes that published ones may leave out. Raises ModelError for what is not computed."""
    activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
    if activation != "gelu_pytorch_tanh":
        raise ModelError(
            f"the config's hidden_activation is {activation!r}", fix="this family computes 'gelu_pytorch_tanh' only"
        )
    if config.get("use_bidirectional_attention"):
        raise ModelError(
            "the config's use_bidirectional_attention is set", fix="this family generates text: its attention is causal"
        )
    silent = {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "max_position_embeddings": generation(config).max_positions,
    }
    return {**silent, **{key: value for key, value in config.items() if value is not None or key not in silent}}


def windows(config: Mapping[str, Any]) -> list[int | None]:
    """Return each layer's sliding window, None for full attention: by `layer_types`, else by the generation's pattern."""
    count = positive(config, "num_hidden_layers", most=MOST_LAYERS)
    types = config.get("layer_types")
    if types is None:
        pattern = positive(config, "sliding_window_pattern", generation(config).pattern)
        types = [SLIDING if (layer + 1) % pattern else FULL for layer in range(count)]
    if not isinstance(types, list) or len(types) != count or any(kind not in (FULL, SLIDING) for kind in types):
        raise ModelError(
            f"the config's layer_types is {types!r}; a list of {count} is needed, each {FULL!r} or {SLIDING!r}",
            fix=_MEND,
        )
    if config.get("sliding_window", 4096) is None:
        return [None] * count
    window = positive(config, "sliding_window", 4096)
    return [window if kind == SLIDING else None for kind in types]


def softcaps(config: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the soft caps of attention logits and of the head's logits, None for none."""
    found = []
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    for key, default in zip(keys, generation(config).softcaps, strict=True):
        value = config.get(key, default)
        found.append(None if value is None else positive_number(value, key))
    if generation(config) is GEMMA3 and found[0] is not None:
        raise ModelError(
            f"the config's attn_logit_softcapping is {found[0]}, but Gemma 3 caps no attention logits",
            fix="set it to null",
        )
    return found[0], found[1]


def rope(config: Mapping[str, Any]) -> list[tuple[float, Mapping[str, Any]]]:
    """Return (theta, scaling) of each rotary table: of layers with full attention, then of those that slide if they have their own."""
    which = generation(config)
    if which.local_theta is None:
        return [rope_settings(config, which.theta)]
    nested = config.get("rope_parameters")
    if nested is None:
        # The older style: only layers with full attention are scaled.
        full = {"rope_scaling": config.get("rope_scaling"), "rope_theta": config.get("rope_theta")}
        local = {"rope_theta": config.get("rope_local_base_freq")}
        return [rope_settings(full, which.theta), rope_settings(local, which.local_theta)]
    if not isinstance(nested, Mapping) or any(key not in (FULL, SLIDING) for key in nested):
        raise ModelError(
            f"the config's rope_parameters is {nested!r}; settings of {FULL} and {SLIDING} are needed", fix=_MEND
        )
    defaults = ((FULL, which.theta), (SLIDING, which.local_theta))
    return [rope_settings({"rope_parameters": nested.get(kind)}, theta) for kind, theta in defaults]
