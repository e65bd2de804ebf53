"""Automatic choices, explained candidate by candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pegboard.errors import PluginError
from pegboard.plugins.doors import run_probe

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

Verdict = Literal["chosen", "available", "absent", "broken", "failed", "blocked", "conflict", "incompatible"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One plugin that was looked at."""

    name: str
    dist: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and what became of the others.

    Host: the choice is the machine itself, where nothing better is present.
    """

    kind: str
    name: str
    candidates: tuple[Candidate, ...]
    host: bool = False

    @property
    def line(self) -> str:
        """The choice with every candidate's reason, in one line."""
        others = [f"{c.name} {c.verdict} ({c.reason})" for c in self.candidates if c.verdict != "chosen"]
        why = "; ".join(others) or "the only one installed"
        return f"{self.kind}: {self.name} [{why}]"

    @property
    def worth_telling(self) -> bool:
        """Whether there was anything to choose, or the host had to do."""
        return self.host or len(self.candidates) > 1


def choose(registry: Registry, kind: str) -> Choice:
    """Take the plugin of highest priority that is present. One that is present but broken stops the choice.

    A plugin whose capabilities say {"host": true} is tried after all others, so that it is taken only where nothing
    better is.
    """
    fallen = {r.identity for r in registry.records(kind)}
    ranked = sorted(registry.candidates(kind), key=lambda pair: pair[1].capabilities.get("host") is True)
    seen: list[Candidate] = []
    chosen, host = "", False
    for record, spec in ranked:
        fallen.discard(record.identity)
        try:
            probe = run_probe(spec)
        except Exception as error:
            reason = f"its probe raises {type(error).__name__}: {error}"
            registry.warn_once(f"passing by {kind} {record.name!r}: {reason}")
            seen.append(Candidate(record.name, record.dist, "failed", reason))
            continue
        if probe.present and not probe.usable and not chosen:
            raise PluginError(
                f"{kind} {record.name!r} is present but not usable: {probe.reason}",
                fix=f"mend that, or name another one, or disable this one: PEGBOARD_DISABLE_PLUGINS={record.dist}",
            )
        usable = probe.present and probe.usable
        verdict: Verdict = "available" if usable else "broken" if probe.present else "absent"
        if usable and not chosen:
            chosen, host, verdict = record.name, spec.capabilities.get("host") is True, "chosen"
        seen.append(Candidate(record.name, record.dist, verdict, probe.reason))
    for record in registry.records(kind):
        if record.identity in fallen:
            verdict = record.status if record.status != "ok" else "failed"
            seen.append(Candidate(record.name, record.dist, verdict, record.reason))
    choice = Choice(kind, chosen, tuple(seen), host)
    if not chosen:
        reasons = "; ".join(f"{c.name}: {c.verdict}, {c.reason}" for c in seen) or "none is installed"
        raise PluginError(
            f"no {kind} plugin can be used ({reasons})",
            fix=f"install one; `peg plugins list --kind {kind}` shows yours",
        )
    return choice
