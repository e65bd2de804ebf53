"""Scaling of rotary positions: from metadata keys or from the tensor of frequency factors to a `rope_scaling` of
Hugging Face.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pegboard.errors import ModelError
from pegboard_gguf.container import Container
from pegboard_gguf.tensors import GgufTensor

FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
_TOLERANCE = 1e-4


def rope_scaling(container: Container, prefix: str, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Return `rope_scaling`, or None for unscaled positions. Raises ModelError for a scaling that has no such form.

    head_dim: dimensions of a head that are turned.
    """
    if LONG_FACTORS in container.tensors or SHORT_FACTORS in container.tensors:
        return _longrope(container, prefix, head_dim)
    if FACTORS in container.tensors:
        factors = _factors(container, FACTORS)
        original = container.metadata.integer(f"{prefix}.rope.scaling.original_context_length") or 8192
        return factors_to_llama3(factors, head_dim, theta, original, container.where)
    metadata = container.metadata
    kind = metadata.text(f"{prefix}.rope.scaling.type") or "none"
    factor = metadata.number(f"{prefix}.rope.scaling.factor")
    if factor is None:
        factor = metadata.number(f"{prefix}.rope.scale_linear")
        kind = "linear" if factor is not None and kind == "none" else kind
    if kind == "none" or factor is None or factor == 1.0:
        return None
    if factor <= 0:
        raise ModelError(f"{container.where}: {prefix}.rope.scaling.factor is {factor}; expected a positive number")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(container, prefix, factor)
    raise ModelError(f"{container.where}: {prefix}.rope.scaling.type is {kind!r}", fix="none, linear and yarn are read")


def _factors(container: Container, name: str) -> np.ndarray:
    """Return a tensor of frequency factors, float64."""
    loaded: np.ndarray = GgufTensor(name, container.tensors[name], container.buffer).load().double().numpy()
    return loaded


def _longrope(container: Container, prefix: str, head_dim: int) -> dict[str, Any]:
    """LongRoPE (arXiv:2402.13753): a factor for each frequency, others for long sequences.

    The factor on attention is left out where it is what follows from the lengths, as Hugging Face's configs leave it out.
    """
    found: dict[str, Any] = {"type": "longrope"}
    for key, name in (("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS)):
        factors = _factors(container, name) if name in container.tensors else np.empty(0)
        if factors.shape != (head_dim // 2,):
            raise ModelError(
                f"{container.where}: {name} has shape {factors.shape}; expected ({head_dim // 2},)",
                fix="convert it again",
            )
        # Stored as float32: the shortest decimals that give the same are the converter's own.
        found[key] = [float(str(np.float32(value))) for value in factors]
    metadata = container.metadata
    original = metadata.integer(f"{prefix}.rope.scaling.original_context_length")
    if original is None or original < 2:
        raise ModelError(
            f"{container.where}: {prefix}.rope.scaling.original_context_length is {original}; LongRoPE needs the pretrained length"
        )
    growth = metadata.need(f"{prefix}.context_length") / original
    usual = 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))
    given = metadata.number(f"{prefix}.rope.scaling.attn_factor")
    if given is not None and not math.isclose(given, usual, rel_tol=1e-5):
        found["attention_factor"] = given
    return found


def _yarn(container: Container, prefix: str, factor: float) -> dict[str, Any]:
    metadata = container.metadata
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    original = metadata.integer(f"{prefix}.rope.scaling.original_context_length")
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    for key, name in (
        ("attn_factor", "attention_factor"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ):
        value = metadata.number(f"{prefix}.rope.scaling.{key}")
        if value is not None:
            scaling[name] = value
    return scaling


def llama3_factors(head_dim: int, theta: float, factor: float, low: float, high: float, original: float) -> np.ndarray:
    """Return by how much each of the head_dim / 2 frequencies is divided under Llama 3.1's scaling, float64."""
    turns = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divided: np.ndarray = 1 / ((1 - blend) / factor + blend)
    return divided


def factors_to_llama3(
    factors: np.ndarray, head_dim: int, theta: float, original: int, where: str
) -> dict[str, Any] | None:
    """Return the Llama 3.1 scaling whose factors these are, or None when all are 1.

    Only the ratios original / low and original / high can be told from the factors, so `original` is taken as
    given; 1 and 4, as published, are tried before fitting them. Raises ModelError when no scaling of this form
    gives these factors.
    """
    if factors.shape != (head_dim // 2,):
        raise ModelError(f"{where}: {FACTORS} has shape {factors.shape}; expected ({head_dim // 2},)")
    if np.allclose(factors, 1.0, rtol=_TOLERANCE, atol=0):
        return None
    factor = round(float(factors.max()), 4)
    for low, high in ((1.0, 4.0), *_fit(factors, factor, head_dim, theta, original)):
        expected = llama3_factors(head_dim, theta, factor, low, high, original)
        if np.allclose(factors, expected, rtol=_TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ModelError(
        f"{where}: {FACTORS} scales positions in a way that no rope_scaling of type llama3 gives",
        fix="use the Hugging Face folder",
    )


def _fit(factors: np.ndarray, factor: float, head_dim: int, theta: float, original: int) -> list[tuple[float, float]]:
    """Solve for low and high from the blended factors: the blend is a straight line over the turns, (turns - low)
    / (high - low).
    """
    inside = (factors > 1 + _TOLERANCE) & (factors < factor * (1 - _TOLERANCE))
    if factor <= 1 or inside.sum() < 2:
        return []
    turns = (original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi))[inside]
    blend = (1 / factors[inside] - 1 / factor) / (1 - 1 / factor)
    slope, intercept = np.polyfit(turns, blend, 1)
    if not slope > 0:
        return []
    low, high = float(-intercept / slope), float((1 - intercept) / slope)
    return [(round(low, 3), round(high, 3)), (low, high)]
