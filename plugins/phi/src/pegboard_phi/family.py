"""Phi-3 and 3.5 (arXiv:2404.14219), Phi-4 (2412.08905) and Phi-4-mini (2503.01743): their dense text models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.errors import ModelError
from pegboard.interfaces.model import ModelFamily
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.nn.dense import head_size, positive
from pegboard.types import ParallelRule


class Phi(ModelFamily):
    """Gated SiLU layers and rotary attention, with q, k and v in one parameter and gate and up in another.

    The first of each head's dimensions are turned (`partial_rotary_factor`); contexts beyond the pretrained length have LongRoPE.
    """

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        config = _complete(config)
        window = None if config.get("sliding_window") is None else positive(config, "sliding_window")
        return dense_causal_lm(config, fused=True, rotary_share=_share(config), window=lambda layer: window)

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(config, fused=True)

    def adapter_targets(self, config: Mapping[str, Any]) -> Sequence[str]:
        return ("qkv_proj", "o_proj")

    def rename(self, name: str) -> str | None:
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        return None if name.endswith("rotary_emb.inv_freq") else name


def _scaling(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return where the config keeps its rotary settings, and these."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    found = config.get(key) or {}
    return key, found if isinstance(found, Mapping) else {}


def _complete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config with the values that transformers takes where it is silent, and with LongRoPE under its present name."""
    key, scaling = _scaling(config)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind in ("su", "yarn"):
        kind = "longrope"
    silent = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    return {**silent, **config, **({key: {**scaling, "rope_type": kind}} if kind != "default" else {})}


def _share(config: Mapping[str, Any]) -> float:
    """Return the share of each head's dimensions that is turned. Raises ModelError where that is no even number of them."""
    share = _scaling(config)[1].get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    size = head_size(config)
    fits = isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1
    if not fits or int(size * share) < 2 or int(size * share) % 2:
        raise ModelError(
            f"the config's partial_rotary_factor is {share!r}; of heads of {size} an even number of dimensions must turn",
            fix="mend the model's config.json",
        )
    return float(share)
