"""The files that transformers calls `fp8` (DeepSeek-V3's, arXiv:2412.19437): for a weight [N, K] of layer X

X.weight             e4m3 [N, K]
X.weight_scale_inv   float32 [N / block, K / block], rounded up; a scalar where the matrix has one scale. The weight is the product of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.errors import ModelError
from pegboard_fp8.ops import E4M3, dequantise, scale_shape

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor

SCALE = "weight_scale_inv"
_FIX = "quantise the model again, as e4m3 in square blocks"


class StoredWeight:
    """A weight in two tensors; as a lazy tensor it is the dequantised weight. block: as of `Fp8Linear`."""

    dtype = torch.bfloat16

    def __init__(self, name: str, parts: Mapping[str, LazyTensor], block: int | None) -> None:
        self.name, self.parts, self._block = name, parts, block
        self.shape = tuple(parts["weight"].shape)

    def load(self) -> Tensor:
        """Return the dequantised weight [N, K]."""
        return dequantise(*self._loaded(), self._block, self.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start … stop - 1 of it."""
        return self.load()[start:stop]

    def _loaded(self) -> tuple[Tensor, Tensor]:
        weight, scales = parts_checked(self.name, {part: lazy.load() for part, lazy in self.parts.items()}, self._block)
        return weight, scales.float()


def quantised_names(tensors: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers whose weights are quantised."""
    return [name.removesuffix(f".{SCALE}") for name in tensors if name.endswith(f".{SCALE}")]


def join(tensors: Mapping[str, LazyTensor], block: int | None) -> dict[str, LazyTensor]:
    """Return the tensors with one StoredWeight in the place of each weight and its scales. Raises ModelError for scales alone."""
    joined = {name: lazy for name, lazy in tensors.items() if not name.endswith(f".{SCALE}")}
    for layer in quantised_names(tensors):
        name = f"{layer}.weight"
        if name not in tensors:
            raise ModelError(f"{layer}.{SCALE} is there, and {name} is missing", fix="download it again")
        joined[name] = StoredWeight(name, {"weight": tensors[name], SCALE: tensors[f"{layer}.{SCALE}"]}, block)
    return joined


def parts_checked(name: str, parts: Mapping[str, Tensor], block: int | None) -> tuple[Tensor, Tensor]:
    """Return (e4m3 weight, scales of `scale_shape`) of loaded parts. Raises ModelError where they do not fit together."""
    weight, scales = parts["weight"], parts[SCALE]
    fits = weight.dtype == E4M3 and weight.dim() == 2 and scales.is_floating_point()
    wanted = scale_shape(weight.shape[0], weight.shape[1], block) if weight.dim() == 2 else ()
    if fits and block is None and scales.numel() == 1:
        scales = scales.reshape(1, 1)
    if not fits or tuple(scales.shape) != wanted:
        raise ModelError(
            f"the parts of {name} do not fit together: weight {weight.dtype} {list(weight.shape)}, {SCALE} {scales.dtype} "
            f"{list(scales.shape)}" + ("" if block is None else f", blocks of {block}"),
            fix=_FIX,
        )
    return weight, scales


def read_settings(settings: Mapping[str, Any]) -> int | None:
    """Return the block of a `quantization_config`. Raises ModelError naming the setting that is not supported."""
    block = settings.get("weight_block_size")
    square = isinstance(block, list) and len(block) == 2 and block[0] == block[1]
    if block is not None and not (square and isinstance(block[0], int) and block[0] > 0):
        raise ModelError(
            f"the model's quantization_config says weight_block_size={block!r}; read is a square, [128, 128] say, or null",
            fix=_FIX,
        )
    fmt, scheme = settings.get("fmt", "e4m3"), settings.get("activation_scheme", "dynamic")
    if fmt != "e4m3" or scheme != "dynamic":
        raise ModelError(
            f"the model's quantization_config says fmt={fmt!r}, activation_scheme={scheme!r}; read is 'e4m3' with 'dynamic'",
            fix=_FIX,
        )
    return None if block is None else int(block[0])


def settings_of(block: int | None, kept: Sequence[str]) -> dict[str, Any]:
    """Return the `quantization_config` for config.json."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": None if block is None else [block, block],
        "modules_to_not_convert": list(kept),
    }
