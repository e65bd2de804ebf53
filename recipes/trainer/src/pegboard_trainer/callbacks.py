"""What else happens around the steps of a run: small objects, asked in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Callback:
    """Something that follows a run. Steps are numbered from 1."""

    def before_step(self, step: int) -> None:
        """Be told that a step begins: its batches are not made yet."""
        return

    def after_step(self, step: int) -> None:
        """Be told that a step was taken: the weights are new."""
        return

    def metrics(self) -> Mapping[str, tuple[Any, Any]]:
        """Return (sum, count) by name, of what happened since the last call; the same names on every rank."""
        return {}


@dataclass(frozen=True, slots=True)
class Callbacks(Callback):
    """Several as one."""

    all: Sequence[Callback] = ()

    def before_step(self, step: int) -> None:
        """Tell each."""
        for callback in self.all:
            callback.before_step(step)

    def after_step(self, step: int) -> None:
        """Tell each."""
        for callback in self.all:
            callback.after_step(step)

    def metrics(self) -> Mapping[str, tuple[Any, Any]]:
        """Return those of all."""
        return {name: pair for callback in self.all for name, pair in callback.metrics().items()}


class Stages(Callback):
    """Tells modules that change in the course of a run which step begins: those that have a method `at_step(step)`."""

    def __init__(self, modules: Iterable[Any]) -> None:
        self._modules = [module for module in modules if callable(getattr(module, "at_step", None))]

    def before_step(self, step: int) -> None:
        """Tell each module."""
        for module in self._modules:
            module.at_step(step)


class FollowingSource(Callback):
    """A source of batches, as far as it follows a run: it may have metrics (a mean reward, say), and something to prepare."""

    def __init__(self, source: Any) -> None:
        self._metrics, self._prepare = (getattr(source, name, None) for name in ("metrics", "prepare"))

    def after_step(self, step: int) -> None:
        """Let the source use the time in which the device computes the step."""
        if self._prepare is not None:
            self._prepare()

    def metrics(self) -> Mapping[str, tuple[Any, Any]]:
        """Return the source's."""
        return {} if self._metrics is None else self._metrics()
