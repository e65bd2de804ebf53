"""Rotary position tables and their scalings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pegboard.errors import ModelError

_KNOWN = ("default", "linear", "yarn")

Scaling = Callable[[list[float], Mapping[str, Any]], list[float]]
"""A family's own scaling: (inverse frequencies, `rope_scaling` of the config) -> inverse frequencies. Raises KeyError for a missing key."""

_NONE: Mapping[str, Scaling] = MappingProxyType({})


class Rotary(nn.Module):
    """Angles of rotary positions (arXiv:2104.09864), computed for the positions at hand.

    dim: dimensions of a head that are turned, even. theta: base. scaling: the `rope_scaling` of a Hugging Face config, or None.
    max_positions: `max_position_embeddings`, which some scalings need. scalings: further ones by their `rope_type`.
    """

    inv_freq: Tensor

    def __init__(
        self,
        dim: int,
        theta: float,
        scaling: Mapping[str, Any] | None = None,
        max_positions: int = 2048,
        scalings: Mapping[str, Scaling] = _NONE,
    ) -> None:
        super().__init__()
        self.dim = dim
        self._frequencies, self.factor = _frequencies(dim, theta, dict(scaling or {}), max_positions, scalings)
        self.register_buffer("inv_freq", torch.empty(dim // 2), persistent=False)

    def materialise(self, device: torch.device) -> None:
        """Put the frequencies on `device` (a model built under the meta device has none yet)."""
        self.inv_freq = torch.tensor(self._frequencies, dtype=torch.float32, device=device)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[T] int64 -> cos and sin, each [T, 1, dim] of `dtype`; the first half of sin is negated, as op `rotary` expects."""
        angles = positions.to(torch.float32)[:, None, None] * self.inv_freq
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rope_settings(config: Mapping[str, Any], default_theta: float = 10000.0) -> tuple[float, dict[str, Any]]:
    """Return theta and the scaling of a Hugging Face config, written in either of its styles (`rope_scaling` or `rope_parameters`)."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ModelError(
            f"the config's rope_scaling is {given!r}; keys and values are needed", fix="mend the model's config.json"
        )
    parameters = dict(given)
    theta = parameters.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    return positive_number(theta, "rope_theta"), parameters


def positive_number(value: Any, key: str) -> float:
    """Return a finite number above zero, as it stands under `key` of a config. Raises ModelError naming key and value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ModelError(
        f"the config's {key} is {value!r}; a positive number is needed", fix="mend the model's config.json"
    )


def _frequencies(
    dim: int, theta: float, scaling: dict[str, Any], max_positions: int, scalings: Mapping[str, Scaling]
) -> tuple[list[float], float]:
    """Return the dim / 2 inverse frequencies and the factor on cos and sin."""
    base = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in (*_KNOWN, *scalings):
        raise ModelError(
            f"the config asks for rope_type {kind!r}, which is not supported",
            fix=f"supported: {', '.join((*_KNOWN, *scalings))}",
        )
    if kind == "default":
        return base, 1.0
    try:
        if kind in scalings:
            return scalings[kind](base, scaling), 1.0
        factor = float(scaling["factor"])
        if kind == "linear":
            return [f / factor for f in base], 1.0
        return _yarn(base, dim, theta, factor, scaling, max_positions)
    except KeyError as missing:
        raise ModelError(
            f"rope_scaling of type {kind!r} lacks the key {missing}", fix="complete the model's config.json"
        ) from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"rope_scaling of type {kind!r} cannot be computed from {scaling}: {error}",
            fix="mend the model's config.json",
        ) from None


def _yarn(
    base: list[float], dim: int, theta: float, factor: float, scaling: Mapping[str, Any], max_positions: int
) -> tuple[list[float], float]:
    """YaRN (arXiv:2309.00071): a ramp over dimensions between slowed and kept, and a factor on the logits' scale."""
    original = float(scaling.get("original_max_position_embeddings") or max_positions)

    def dimension(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(scaling.get("beta_fast") or 32)), dimension(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = (high - low) or 0.001
    out = []
    for i, f in enumerate(base):
        slowed = min(max((i - low) / span, 0.0), 1.0)
        out.append(slowed * f / factor + (1 - slowed) * f)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = scaling.get("attention_factor")
    if given is not None:
        return out, float(given)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return out, magnitude(float(scaling["mscale"])) / magnitude(float(scaling["mscale_all_dim"]))
    return out, magnitude(1.0)
