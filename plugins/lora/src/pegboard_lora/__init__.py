"""LoRA and DoRA adapters.

The names below are imported when they are first used, so that the front door stays free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard_lora.adapter import DoraAdapter, LoraAdapter
    from pegboard_lora.files import open_adapter
    from pegboard_lora.layers import DoraLinear, LoraLinear

__all__ = ["DoraAdapter", "DoraLinear", "LoraAdapter", "LoraLinear", "open_adapter"]

_HOMES = {
    "DoraAdapter": "adapter",
    "DoraLinear": "layers",
    "LoraAdapter": "adapter",
    "LoraLinear": "layers",
    "open_adapter": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
