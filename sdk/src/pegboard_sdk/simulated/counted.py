"""Numbers of a piece of work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counted:
    """What a device was given, and what the host waited for.

    launches: times by name, of torch's operations ("mm") and of kernels ("rms_norm_forward"); views and empty tensors are none.
    copies: "to the device" and "to the host". waits: times by cause, that the host stood still, or might have. behind: for every event
    that was waited for, the launches and copies that had been given to the device after it: with none, the device stands still too.
    """

    launches: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    behind: list[int] = field(default_factory=list)

    @property
    def given(self) -> int:
        """Launches and copies together."""
        return self.launches.total() + self.copies.total()

    def per(self, times: int) -> dict[str, float]:
        """Return launches and copies by name, divided by the number of steps that they are of."""
        return {name: count / times for name, count in (self.launches + self.copies).items()}


def by_layer(one: Counted, more: Counted, layers: int = 1) -> dict[str, tuple[int, int]]:
    """Return, of the same step of two models, launches and copies by name: (those of `layers` layers, those of all else).

    one: of a model with `layers` layers; more: of one with twice as many. Raises ValueError where the difference is not that of
    layers, since there were fewer of something in the larger model.
    """
    few, many = one.launches + one.copies, more.launches + more.copies
    found = {}
    for name in sorted(few | many):
        each = many[name] - few[name]
        if each < 0 or each > few[name]:
            raise ValueError(f"{name!r}: {few[name]} times with {layers} layers, {many[name]} with {2 * layers}")
        found[name] = each, few[name] - each
    return found


def difference(found: dict[str, tuple[int, int]], wanted: dict[str, tuple[int, int]]) -> Iterable[str]:
    """Yield a line for each name whose numbers, as of `by_layer`, are not the wanted ones; empty where all are."""
    for name in sorted({*found, *wanted}):
        was, should = found.get(name, (0, 0)), wanted.get(name, (0, 0))
        if was != should:
            yield f"{name}: {was[0]} a layer and {was[1]} beside, {should[0]} and {should[1]} wanted"
