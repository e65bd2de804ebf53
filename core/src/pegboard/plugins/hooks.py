"""Observers.

Pluggy hooks for whoever cares. A hook never chooses anything, and none is called per layer or per token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from pegboard.errors import PluginError

if TYPE_CHECKING:
    from pegboard.interfaces.engine import RequestOutput
    from pegboard.interfaces.logger import RunInfo
    from pegboard.nn.causal_lm import CausalLM

PROJECT = "pegboard"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """Every hook.

    An implementation may take any subset of the arguments; what it returns is ignored except by `doctor`.
    """

    @hookspec
    def configure(self, config: Mapping[str, Any]) -> None:
        """A run's configuration is resolved and validated; read it, do not change it."""

    @hookspec
    def model_built(self, role: str, model: CausalLM) -> None:
        """A model is on its device with its weights.

        Role: "policy", "reference" … in training, "engine" in generation.
        """

    @hookspec
    def run_started(self, run: RunInfo) -> None:
        """A run is about to take its first step."""

    @hookspec
    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of optimizer step `step` (from 1) were logged."""

    @hookspec
    def checkpoint_saved(self, step: int, folder: Path) -> None:
        """A step folder is complete on disk."""

    @hookspec
    def run_finished(self, status: str) -> None:
        """A run ended; status as in `Logger.finish`."""

    @hookspec
    def request_finished(self, output: RequestOutput) -> None:
        """An answer to a generation request came to its end; `output.record` tells what was asked for, and when what happened.

        Called by the thread that steps the engine: what takes time belongs elsewhere.
        """

    @hookspec
    def doctor(self) -> list[str] | None:
        """Return lines for `peg doctor`, each what is wrong or worth knowing and how to mend it."""


class HookRelay:
    """Calls observers one by one, so that one that raises is warned about, muted for good, and stops nobody else."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """warn: told in one line when an observer is muted."""
        self._warn = warn
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)

    def register(self, observer: object, name: str | None = None) -> None:
        """Add an observer. Raises PluginError, leaving nothing of it behind, when it is no valid observer."""
        unknown = [
            attribute
            for attribute, function in inspect.getmembers(type(observer), callable)
            if getattr(function, f"{PROJECT}_impl", None) and not hasattr(HookSpecs, attribute)
        ]
        try:
            if unknown:
                raise ValueError(f"there is no hook {', '.join(unknown)}")
            self._manager.register(observer, name=name)
        except Exception as error:
            # pluggy leaves the methods behind that it took before the one that it refused.
            if self._manager.is_registered(observer):
                self._manager.unregister(observer)
            raise PluginError(
                f"observer {name or type(observer).__name__} cannot be registered: {error}",
                fix="compare its methods with pegboard.plugins.hooks.HookSpecs",
            ) from error

    @property
    def names(self) -> list[str]:
        """Names of the observers that are registered and not muted."""
        return [name for name, plugin in self._manager.list_name_plugin() if plugin is not None]

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call one hook on every observer in pluggy's order and return what they returned, None left out."""
        caller = getattr(self._manager.hook, hook)
        expected = set(caller.spec.argnames)
        if set(arguments) != expected:
            raise TypeError(f"hook {hook} takes {sorted(expected)}, given {sorted(arguments)}")
        results: list[Any] = []
        for implementation in reversed(caller.get_hookimpls()):
            others = [plugin for plugin in self._manager.get_plugins() if plugin is not implementation.plugin]
            try:
                results.extend(self._manager.subset_hook_caller(hook, others)(**arguments))
            except Exception as error:
                self._manager.unregister(implementation.plugin)
                self._warn(
                    f"observer {implementation.plugin_name} raised in {hook} and is muted: "
                    f"{type(error).__name__}: {error}"
                )
        return results
