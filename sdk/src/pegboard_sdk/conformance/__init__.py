"""Conformance suites: one class per interface, which a plugin's tests subclass.

Each is imported from here when it is first used, so that a suite brings no more than it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard_sdk.conformance.adapter import AdapterSuite
    from pegboard_sdk.conformance.attention import AttentionSuite
    from pegboard_sdk.conformance.grammar import GrammarSuite
    from pegboard_sdk.conformance.logger import LoggerSuite
    from pegboard_sdk.conformance.logits_processor import LogitsProcessorSuite
    from pegboard_sdk.conformance.model import ModelSuite
    from pegboard_sdk.conformance.objective import ObjectiveSuite
    from pegboard_sdk.conformance.parser import ParserSuite
    from pegboard_sdk.conformance.platform import PlatformSuite
    from pegboard_sdk.conformance.recipe import RecipeSuite
    from pegboard_sdk.conformance.source import SourceSuite
    from pegboard_sdk.conformance.suite import PluginSuite
    from pegboard_sdk.conformance.transform import TransformSuite

__all__ = [
    "AdapterSuite",
    "AttentionSuite",
    "GrammarSuite",
    "LoggerSuite",
    "LogitsProcessorSuite",
    "ModelSuite",
    "ObjectiveSuite",
    "ParserSuite",
    "PlatformSuite",
    "PluginSuite",
    "RecipeSuite",
    "SourceSuite",
    "TransformSuite",
]

_HOMES = {name: name.removesuffix("Suite").lower() for name in __all__}
_HOMES |= {"PluginSuite": "suite", "LogitsProcessorSuite": "logits_processor"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
