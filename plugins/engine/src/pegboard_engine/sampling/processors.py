"""Logits processors of plugins: what they need to know of each row, and how their errors stay with the rows that cause them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pegboard.errors import PegboardError
from pegboard.interfaces.logits_processor import LogitsProcessor, ProcessedRow

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

Validate = Callable[[Mapping[str, Any]], Any]
Factory = Callable[[str], tuple[LogitsProcessor, Validate]]
"""Name -> a processor, and a function that validates the options of one request."""


def load_processor(registry: Registry, name: str) -> tuple[Callable[[], LogitsProcessor], Validate]:
    """Return the class of an installed processor, and a function that validates options. Raises PluginError when it cannot be had.

    The function returns the options model, None for a processor without a schema, and raises ConfigError.
    """
    made = registry.load("logits_processor", name)
    schema = registry.schema("logits_processor", name)
    what = f"logits_processor {name!r}"

    def validate(options: Mapping[str, Any]) -> Any:
        if schema is None:
            if options:
                from pegboard.errors import ConfigError

                raise ConfigError(f"{what} takes no options, given: {', '.join(options)}", fix="remove them")
            return None
        from pegboard.config.errors import validate_options

        return validate_options(schema, options, what)

    return made, validate


def factory_of(registry: Registry) -> Factory:
    """Return a factory of the processors that a registry has."""

    def make(name: str) -> tuple[LogitsProcessor, Validate]:
        made, validate = load_processor(registry, name)
        return made(), validate

    return make


@dataclass(slots=True)
class _Held:
    """calls: (name, validated options) in order; error: why there are none."""

    prompt: list[int]
    output: list[int]
    calls: list[tuple[str, Any]]
    error: str | None = None


class Processors:
    """The processors of a worker, one instance of each, and the tokens of the slots that use them."""

    def __init__(self, factory: Factory | None) -> None:
        self._factory = factory
        self._made: dict[str, tuple[LogitsProcessor, Validate]] = {}
        self._held: dict[int, _Held] = {}
        self._pending: list[tuple[list[int], Tensor, Tensor | None]] = []

    def reset(
        self, slot: int, prompt: np.ndarray, output: np.ndarray, calls: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> None:
        """Begin anew with the tokens of a slot and (processor, options) in order."""
        self._catch_up()
        held = self._held[slot] = _Held(prompt.tolist(), output.tolist(), [])
        for name, options in calls:
            try:
                held.calls.append((name, self._get(name)[1](options)))
            except Exception as error:
                held.error = _line(name, error)

    def release(self, slot: int) -> None:
        """Forget a slot."""
        self._catch_up()
        self._held.pop(slot, None)

    def append(self, slots: np.ndarray, ids: Tensor, count: Tensor | None) -> None:
        """Add tokens to outputs: the first count[i] of ids [N, P] for slots [N]; all where count is None.

        They are read when they are needed next, by which time the device has long computed them.
        """
        self._pending.append((slots.tolist(), ids, count))

    def run_(
        self, logits: Tensor, rows: Sequence[int], slots: Sequence[int], ahead: Sequence[Sequence[int]] | None
    ) -> dict[int, str]:
        """Change the logits [M, V] float32 of `rows`, which belong to slots, in place; return row -> why it failed.

        ahead: for each of rows the proposed ids that precede it.
        """
        self._catch_up()
        errors: dict[int, str] = {}
        stage = 0
        held = [self._held[slot] for slot in slots]
        errors.update({row: one.error for row, one in zip(rows, held, strict=True) if one.error is not None})
        while True:
            groups: dict[str, list[tuple[int, ProcessedRow]]] = {}
            for i, (row, one) in enumerate(zip(rows, held, strict=True)):
                if row not in errors and stage < len(one.calls):
                    name, options = one.calls[stage]
                    output = one.output if ahead is None else [*one.output, *ahead[i]]
                    groups.setdefault(name, []).append((row, ProcessedRow(options, one.prompt, output)))
            if not groups:
                return errors
            for name, group in groups.items():
                errors.update(self._apply_(logits, name, group))
            stage += 1

    def _apply_(self, logits: Tensor, name: str, group: list[tuple[int, ProcessedRow]]) -> dict[int, str]:
        """Run one processor for some rows. When it raises it is asked again for each row alone: only some may be to blame."""
        where = torch.tensor([row for row, _ in group], device=logits.device)
        given = logits[where]
        try:
            new = self._get(name)[0].process(given, [row for _, row in group])
            if not isinstance(new, Tensor) or new.shape != given.shape or not new.is_floating_point():
                found = f"{new.dtype} {list(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
                raise TypeError(f"it returned {found} in place of float32 {list(given.shape)}")
        except Exception as error:
            if len(group) == 1:
                return {group[0][0]: _line(name, error)}
            alone = [self._apply_(logits, name, [one]) for one in group]
            return {row: text for part in alone for row, text in part.items()}
        logits[where] = new.to(logits)
        return {}

    def _get(self, name: str) -> tuple[LogitsProcessor, Validate]:
        if name not in self._made:
            if self._factory is None:
                raise LookupError("this worker was given no logits processors")
            self._made[name] = self._factory(name)
        return self._made[name]

    def _catch_up(self) -> None:
        for slots, ids, count in self._pending:
            counts = [ids.shape[1]] * len(slots) if count is None else count.tolist()
            for slot, row, number in zip(slots, ids.tolist(), counts, strict=True):
                self._held[slot].output += row[:number]
        self._pending.clear()


def _line(name: str, error: Exception) -> str:
    said = error.message if isinstance(error, PegboardError) else f"{type(error).__name__}: {error}"
    return f"logits processor {name!r}: {said}"
