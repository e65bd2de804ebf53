"""Continuous generation over a paged key-value cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pegboard.interfaces.engine import RequestOptions
from pegboard.types import SamplingParams

if TYPE_CHECKING:
    from pegboard_engine.engine import PagedEngine
    from pegboard_engine.llm import LLM, Completion, Generation
    from pegboard_engine.options import EngineOptions

__all__ = ["LLM", "SamplingParams", "RequestOptions", "Generation", "Completion", "PagedEngine", "EngineOptions"]

_HOMES = {
    "LLM": "llm",
    "Generation": "llm",
    "Completion": "llm",
    "PagedEngine": "engine",
    "EngineOptions": "options",
}


def __getattr__(name: str) -> Any:
    # Torch is imported when a model is first asked for, not with the package: the front door lives in it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
