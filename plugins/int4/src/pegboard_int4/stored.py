"""The files of compressed-tensors, format `pack-quantized`: for a weight [N, K] of layer X

X.weight_packed   int32 [N, K / 8], code + 8 of column 8 j + i in bits 4 i … 4 i + 3 of word j
X.weight_scale    [N, K / group]
X.weight_shape    int64 [2]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.errors import ModelError
from pegboard_int4.rounding import HIGH, LOW, weight_scales, weight_steps

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor

PER_WORD = 8
"""Codes in an int32."""

_FORMAT = "pack-quantized"
_PARTS = ("weight_packed", "weight_scale", "weight_shape")
_FIX = "quantise the model again, as 4-bit integers in groups, symmetric"


class StoredWeight:
    """A weight in several tensors; as a lazy tensor it is the dequantised weight. parts: by the names above."""

    def __init__(self, name: str, parts: Mapping[str, LazyTensor]) -> None:
        self.name, self.parts = name, parts
        missing = [part for part in _PARTS if part not in parts]
        if missing:
            raise ModelError(f"{name} is quantised, and {', '.join(missing)} of it are missing", fix=_FIX)
        rows, words = (*parts["weight_packed"].shape, 0, 0)[:2]
        self.shape: tuple[int, ...] = (rows, words * PER_WORD)
        self.dtype = parts["weight_scale"].dtype

    def load(self) -> Tensor:
        """Return the dequantised weight [N, K]."""
        parts = {part: lazy.load() for part, lazy in self.parts.items()}
        words, scales = parts_checked(self.name, parts)
        return dequantise(words, scales.float(), self.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start … stop - 1 of it."""
        return self.load()[start:stop]


def quantised_names(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers whose weights are quantised."""
    return [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]


def join(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors with one StoredWeight in the place of each quantised weight."""
    names = set(quantised_names(tensors))
    parts: dict[str, dict[str, LazyTensor]] = {name: {} for name in names}
    joined: dict[str, LazyTensor] = {}
    for key, lazy in tensors.items():
        owner, _, leaf = key.rpartition(".")
        if owner in names and leaf in _PARTS:
            parts[owner][leaf] = lazy
        else:
            joined[key] = lazy
    for name in sorted(names):
        joined[f"{name}.weight"] = StoredWeight(f"{name}.weight", parts[name])
    return joined


def parts_checked(name: str, parts: Mapping[str, Tensor], group: int | None = None) -> tuple[Tensor, Tensor]:
    """Return (words, scales) of loaded parts. Raises ModelError where they do not fit together, or groups are of another size."""
    words, scales, shape = (parts[part] for part in _PARTS)
    stated = shape.tolist()
    fits = (
        words.dtype == torch.int32
        and words.dim() == scales.dim() == 2
        and stated == [words.shape[0], words.shape[1] * PER_WORD]
        and scales.is_floating_point()
        and scales.shape[0] == words.shape[0]
        and scales.shape[1] > 0
        and stated[1] % scales.shape[1] == 0
        and (group is None or stated[1] // scales.shape[1] == group)
    )
    if not fits:
        raise ModelError(
            f"the parts of {name} do not fit together: words {words.dtype} {list(words.shape)}, scales {scales.dtype} "
            f"{list(scales.shape)}, shape {stated}" + ("" if group is None else f", groups of {group}"),
            fix=_FIX,
        )
    return words, scales


def pack(codes: Tensor) -> Tensor:
    """Return codes -8 … 7 [N, K], of any dtype, as int32 [N, K / 8]."""
    fields = (codes.to(torch.int32) - LOW).unflatten(1, (-1, PER_WORD))
    words = fields[:, :, 0].clone()
    for place in range(1, PER_WORD):
        words |= fields[:, :, place] << (4 * place)
    return words


def unpack(words: Tensor) -> Tensor:
    """Return int32 [N, K / 8] as codes [N, K] int8."""
    places = torch.arange(0, 4 * PER_WORD, 4, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> places) & 15).add_(LOW).to(torch.int8).flatten(1)


def dequantise(words: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight [N, K] that words and float32 scales stand for, rounded once to `dtype`: `weight_values` of `unpack`, faster."""
    pairs = _pairs(words.device).index_select(0, words.view(torch.uint8).view(-1).int()).view(torch.float32)
    grouped = pairs.view(*scales.shape, -1)
    return grouped.mul_(scales[:, :, None]).view(words.shape[0], -1).to(dtype)


@cache
def _pairs(device: torch.device) -> Tensor:
    """Return for every byte of a word the two codes in it, lower half first, as two float32 in one float64 of the same 64 bits."""
    byte = torch.arange(256)
    codes = torch.stack([byte & 15, byte >> 4], 1) + LOW
    return codes.float().view(torch.float64).view(-1).to(device)


def finite_codes(name: str, weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return (codes int8 [N, K], scales float32 [N, K / group]) of layer `name`. Raises ModelError where its weight is not finite."""
    scales = weight_scales(weight, group)
    if not scales.isfinite().all():
        raise ModelError(
            f"{name}.weight holds values that are not finite, which 4 bits cannot hold",
            fix="mend the checkpoint, or load it without the quantizer",
        )
    return weight_steps(weight, scales).clamp_(LOW, HIGH).to(torch.int8), scales.float()


def parts_of(name: str, weight: Tensor, group: int) -> dict[str, Tensor]:
    """Return the tensors to write for the weight of layer `name`."""
    codes, scales = finite_codes(name, weight, group)
    shape = torch.tensor(list(weight.shape))
    return {f"{name}.weight_packed": pack(codes), f"{name}.weight_scale": scales, f"{name}.weight_shape": shape}


def settings_of(group: int, activations: bool, ignore: Sequence[str]) -> dict[str, Any]:
    """Return the `quantization_config` for config.json."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group,
        "dynamic": False,
    }
    inputs = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
    group_0 = {
        "format": _FORMAT,  # else readers guess another one from the inputs
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs if activations else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group_0},
        "ignore": list(ignore),
    }


def read_settings(settings: Mapping[str, Any]) -> tuple[int, bool]:
    """Return (group, whether inputs are rounded). Raises ModelError naming the setting that is not supported."""
    groups = settings.get("config_groups")
    only = next(iter(groups.values())) if isinstance(groups, Mapping) and len(groups) == 1 else None
    weights = only.get("weights") if isinstance(only, Mapping) else None
    if settings.get("format") != _FORMAT or not isinstance(only, Mapping) or not isinstance(weights, Mapping):
        raise _unsupported("format", settings.get("format"), f"{_FORMAT}, with one config group")
    for key, value in {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}.items():
        if weights.get(key) != value:
            raise _unsupported(f"weights.{key}", weights.get(key), repr(value))
    group = weights.get("group_size")
    if not isinstance(group, int) or group < PER_WORD or group % PER_WORD:
        raise _unsupported("weights.group_size", group, f"a multiple of {PER_WORD}")
    inputs = only.get("input_activations")
    if inputs is None:
        return group, False
    for key, value in {
        "num_bits": 8,
        "type": "int",
        "symmetric": False,
        "strategy": "token",
        "dynamic": True,
    }.items():
        if not isinstance(inputs, Mapping) or inputs.get(key) != value:
            raise _unsupported(
                f"input_activations.{key}", inputs.get(key) if isinstance(inputs, Mapping) else inputs, repr(value)
            )
    return group, True


def _unsupported(key: str, value: Any, wanted: str) -> ModelError:
    return ModelError(f"the quantization_config says {key}={value!r}; read is {wanted}", fix=_FIX)
