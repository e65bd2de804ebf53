"""All kernels with the types that they are launched with: enough to compile each of them where there is no device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

MODULES: tuple[str, ...] = (
    "pegboard_triton.adamw",
    "pegboard_triton.attention.variants",
    "pegboard_triton.gated",
    "pegboard_triton.linear_fused",
    "pegboard_triton.linear_small",
    "pegboard_triton.lora",
    "pegboard_triton.loss",
    "pegboard_triton.moe",
    "pegboard_triton.norm",
    "pegboard_triton.quantized",
    "pegboard_triton.rotary",
    "pegboard_triton.sampling.choose",
    "pegboard_triton.sampling.logprobs",
    "pegboard_triton.sampling.penalties",
    "pegboard_triton.tokens",
)
"""The kernel modules of this distribution. Each offers `variants()`, and `replacements(phase, dtype)` if it replaces ops."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which a kernel is launched.

    name: unique, such as "rms_norm.forward[bf16]". kernel: the function decorated with `triton.jit`. signature: Triton's type of
    each argument that is not constant, by name ("*bf16", "i32", "fp32"). constants: the others. options: num_warps, num_stages.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)


def variants() -> Iterator[Variant]:
    """Yield the variants of all modules. Raises ValueError when two have the same name."""
    seen: set[str] = set()
    for module in MODULES:
        for variant in import_module(module).variants():
            if variant.name in seen:
                raise ValueError(f"two kernel variants are named {variant.name!r}")
            seen.add(variant.name)
            yield variant
