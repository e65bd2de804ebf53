"""Rotary position tables and their scalings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pegboard.errors import ModelError

_KNOWN = ("default", "linear", "yarn", "longrope")

Scaling = Callable[[list[float], Mapping[str, Any]], list[float]]
"""A family's own scaling: (inverse frequencies, `rope_scaling` of the config) -> inverse frequencies. Raises KeyError for a missing key."""

_NONE: Mapping[str, Scaling] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Frequencies:
    """values: dim / 2 inverse frequencies. factor: on cos and sin. long: those of sequences of more than `limit` tokens, if others."""

    values: list[float]
    factor: float = 1.0
    long: list[float] | None = None
    limit: int | None = None


class Rotary(nn.Module):
    """Angles of rotary positions (arXiv:2104.09864), computed for the positions at hand.

    dim: dimensions of a head that are turned, even. theta: base. scaling: the `rope_scaling` of a Hugging Face config, or None.
    max_positions: `max_position_embeddings`, which some scalings need. scalings: further ones by their `rope_type`.

    limit: where sequences of more tokens have other frequencies from their first token on (LongRoPE), that many; None for most models.
    """

    inv_freq: Tensor
    long_freq: Tensor

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
        self._found = _frequencies(dim, theta, dict(scaling or {}), max_positions, scalings)
        self.factor, self.limit = self._found.factor, self._found.limit
        self._table: Tensor | None = None
        self.register_buffer("inv_freq", torch.empty(dim // 2), persistent=False)
        if self._found.long is not None:
            self.register_buffer("long_freq", torch.empty(dim // 2), persistent=False)

    def materialise(self, device: torch.device) -> None:
        """Put the frequencies on `device` (a model built under the meta device has none yet)."""
        self.inv_freq = torch.tensor(self._found.values, dtype=torch.float32, device=device)
        if self._found.long is not None:
            self.long_freq = torch.tensor(self._found.long, dtype=torch.float32, device=device)

    @torch.no_grad()
    def tabulate(self, count: int, dtype: torch.dtype) -> None:
        """Keep what `forward` gives for positions below `count`, for `look_up`; nothing where it depends on more than the position."""
        known = 0 if self._table is None or self._table.dtype != dtype else self._table.shape[1]
        if self.limit is None and count > known:
            self._table = torch.stack(self(torch.arange(count, device=self.inv_freq.device), dtype))

    def look_up(self, positions: Tensor, dtype: torch.dtype, extents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, from the table where there is one. Its owner answers for positions being inside."""
        if self._table is None or self._table.dtype != dtype or self._table.device != positions.device:
            angles: tuple[Tensor, Tensor] = self(positions, dtype, extents)
            return angles
        # Both in one launch: a decode step of one sequence is made of those.
        cos, sin = self._table.index_select(1, positions)
        return cos, sin

    def forward(self, positions: Tensor, dtype: torch.dtype, extents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[T] int64 -> cos and sin, each [T, 1, dim] of `dtype`; the first half of sin is negated, as op `rotary` expects.

        extents: [T] int64, tokens of each row's whole sequence; None: as many as the greatest position of the batch says.
        """
        frequencies = self.inv_freq
        if self.limit is not None and len(positions):
            longest = (positions.max() + 1).expand(len(positions)) if extents is None else extents
            frequencies = torch.where((longest > self.limit)[:, None, None], self.long_freq, frequencies)
        angles = positions.to(torch.float32)[:, None, None] * frequencies
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rope_settings(config: Mapping[str, Any], default_theta: float = 10000.0) -> tuple[float, dict[str, Any]]:
    """Return theta and the scaling of a Hugging Face config, written in either of its styles (`rope_scaling` or `rope_parameters`).

    A pretrained length that stands beside them (`original_max_position_embeddings`) is put into the scaling.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ModelError(
            f"the config's rope_scaling is {given!r}; keys and values are needed", fix="mend the model's config.json"
        )
    parameters = dict(given)
    original = config.get("original_max_position_embeddings")
    if parameters and original is not None:
        parameters["original_max_position_embeddings"] = original
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
) -> _Frequencies:
    base = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in (*_KNOWN, *scalings):
        raise ModelError(
            f"the config asks for rope_type {kind!r}, which is not supported",
            fix=f"supported: {', '.join((*_KNOWN, *scalings))}",
        )
    if kind == "default":
        return _Frequencies(base)
    try:
        if kind in scalings:
            return _Frequencies(scalings[kind](base, scaling))
        if kind == "longrope":
            return _longrope(base, scaling, max_positions)
        factor = float(scaling["factor"])
        if kind == "linear":
            return _Frequencies([f / factor for f in base])
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
) -> _Frequencies:
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
        return _Frequencies(out, float(given))
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        ratio = magnitude(float(scaling["mscale"])) / magnitude(float(scaling["mscale_all_dim"]))
        return _Frequencies(out, ratio)
    return _Frequencies(out, magnitude(1.0))


def _longrope(base: list[float], scaling: Mapping[str, Any], max_positions: int) -> _Frequencies:
    """LongRoPE (arXiv:2402.13753): a factor for each frequency, others for sequences longer than the pretrained length.

    Where the config gives no factor on cos and sin, it is sqrt(1 + ln(growth) / ln(pretrained length)) for both.
    """
    original = int(scaling.get("original_max_position_embeddings") or max_positions)
    found = []
    for key in ("short_factor", "long_factor"):
        factors = [float(factor) for factor in scaling[key]]
        if len(factors) != len(base) or not all(factor > 0 for factor in factors):
            raise ValueError(f"{key} must be {len(base)} positive numbers")
        found.append([f / factor for f, factor in zip(base, factors, strict=True)])
    growth = float(scaling.get("factor") or max_positions / original)
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))
    return _Frequencies(found[0], float(attention), found[1], original)
