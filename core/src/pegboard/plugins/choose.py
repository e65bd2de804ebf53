"""Automatic choices, explained candidate by candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pegboard.errors import PluginError
from pegboard.plugins.doors import run_probe

if TYPE_CHECKING:
    from pegboard.plugins.index import PluginRecord
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import PluginSpec, Probe

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
        """The choice with every candidate's reason, in one line, the chosen one first."""
        told = sorted(self.candidates, key=lambda c: c.verdict != "chosen")
        return f"{self.kind}: " + "; ".join(f"{c.name} {c.verdict} ({c.reason})" for c in told)

    @property
    def worth_telling(self) -> bool:
        """Whether there was anything to choose, or the host had to do."""
        return self.host or len(self.candidates) > 1


def choose(registry: Registry, kind: str) -> Choice:
    """Take the plugin of highest priority that is present.

    A plugin whose capabilities say {"host": true} is tried after all others, so that it is taken only where nothing
    better is present. Raises PluginError when the first that is present is broken or shares its name with another
    plugin, and when none can be used.
    """
    opened = registry.candidates(kind, rivals=True)
    seen: list[Candidate] = []
    chosen, host = "", False
    for record, spec in sorted(opened, key=lambda pair: _is_host(pair[1])):
        try:
            probe = run_probe(spec)
        except (Exception, SystemExit) as error:
            reason = f"its probe raises {type(error).__name__}: {error}"
            registry.warn_once(f"passing by {kind} {record.identity}: {reason}")
            seen.append(Candidate(record.name, record.dist, "failed", reason))
            continue
        if chosen or not probe.present:
            verdict: Verdict = "absent" if not probe.present else "available" if probe.usable else "broken"
            seen.append(Candidate(record.name, record.dist, verdict, probe.reason))
            continue
        _refuse_unusable(record, probe)
        chosen, host = record.name, _is_host(spec)
        seen.append(Candidate(record.name, record.dist, "chosen", probe.reason))
    tried = {record.identity for record, _ in opened}
    for record in registry.records(kind):
        if record.identity not in tried:
            verdict = record.status if record.status != "ok" else "failed"
            seen.append(Candidate(record.name, record.dist, verdict, record.reason))
    if not chosen:
        reasons = "; ".join(f"{c.name}: {c.verdict}, {c.reason}" for c in seen) or "none is installed"
        raise PluginError(
            f"no {kind} plugin can be used ({reasons})",
            fix=f"install one; `peg plugins list --kind {kind}` shows yours",
        )
    return Choice(kind, chosen, tuple(seen), host)


def _is_host(spec: PluginSpec) -> bool:
    return spec.capabilities.get("host") is True


def _refuse_unusable(record: PluginRecord, probe: Probe) -> None:
    """Raise PluginError when the plugin that a choice came to cannot be taken.

    Passing it by would give the user a worse one, or one of two rivals, without a word.
    """
    off = f"PEGBOARD_DISABLE_PLUGINS={record.dist or record.name}"
    if not probe.usable:
        raise PluginError(
            f"{record.kind} {record.name!r} is present but not usable: {probe.reason}",
            fix=f"mend that, or name another one, or disable this one: {off}",
        )
    if record.status == "conflict":
        raise PluginError(
            record.reason, fix=f"uninstall or disable one of them ({off}), or name one: {record.identity}"
        )
