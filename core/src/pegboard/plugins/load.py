"""Choosing and loading plugins: the registry."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError, PluginError, nearest
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import (
    ALLOW_VARIABLE,
    BLOCK_VARIABLE,
    Index,
    PluginRecord,
    Status,
    block,
    find_conflicts,
    scan,
)
from pegboard.plugins.spec import PluginSpec

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pegboard.plugins.choose import Choice
    from pegboard.plugins.hooks import HookRelay
    from pegboard.plugins.resolve import ResolvedChoice

log = logging.getLogger("pegboard.plugins")

_PREFERENCE: tuple[Status, ...] = ("ok", "conflict", "incompatible", "failed", "blocked")
"""Which record a name means where several have it: one that can be used, else the one whose reason tells most."""


class Registry:
    """The plugins of this process: an index, and the front doors that were opened so far.

    Policy: a plugin that is asked for by name and cannot be had raises PluginError with cause and fix; one that is
    merely among the candidates of a choice is passed by with one warning line.
    """

    def __init__(
        self,
        index: Index,
        specs: Mapping[tuple[str, str], PluginSpec] | None = None,
        announced: set[str] | None = None,
    ) -> None:
        self._index = index
        self._specs: dict[tuple[str, str], PluginSpec] = dict(specs or {})
        self._failures: dict[tuple[str, str], PluginRecord] = {}
        self._announced: set[str] = set() if announced is None else announced
        self._hooks: HookRelay | None = None

    @classmethod
    def discover(cls, *, disabled: Iterable[str] = (), allowed: Iterable[str] | None = None) -> Registry:
        """Scan what is installed, with a warning line for what cannot be read; see `index.scan` for the two lists."""
        registry = cls(scan(disabled=disabled, allowed=allowed))
        for problem in registry.problems:
            registry.warn_once(problem)
        return registry

    @classmethod
    def of(cls, specs: Mapping[tuple[str, str], PluginSpec | tuple[PluginSpec, str]]) -> Registry:
        """Return a registry of the given front doors, by (kind, name), without any discovery.

        For tests and embedding.
        """
        records, doors = [], {}
        for (kind, name), value in specs.items():
            spec, dist = value if isinstance(value, tuple) else (value, "")
            records.append(PluginRecord(kind, name, dist, "", "", ""))
            doors[kind, f"{dist}:{name}"] = spec
        return cls(Index(tuple(find_conflicts(records))), doors)

    def without(self, disabled: Iterable[str]) -> Registry:
        """Return a registry of the same scan that blocks `disabled` (names, distributions or dist:name) too."""
        blocks = list(disabled)
        if not blocks:
            return self
        registry = Registry(block(self._index, blocks), self._specs, self._announced)
        for problem in registry.problems[len(self.problems) :]:
            registry.warn_once(problem)
        return registry

    @property
    def problems(self) -> tuple[str, ...]:
        """What the scan could not read, and list entries that mean no plugin, a line each."""
        return self._index.problems

    def records(self, kind: str | None = None) -> list[PluginRecord]:
        """Return what is installed, of all kinds or of one, with the state that is known so far."""
        records = self._index.records if kind is None else self._index.of_kind(_known(kind))
        return [self._failures.get((r.kind, r.identity), r) for r in records]

    def record(self, kind: str, name: str) -> PluginRecord:
        """Return the one usable record of a name or dist:name.

        Raises PluginError when there is none or more than one.
        """
        found = [r for r in self.records(kind) if name in (r.name, r.identity)]
        if not found:
            raise _unknown(kind, name, [r.name for r in self.records(kind) if r.status != "blocked"])
        # Whoever names the distribution too has settled the conflict.
        exact = [
            replace(r, status="ok", reason="") if r.status == "conflict" else r for r in found if r.identity == name
        ]
        record = min(exact or found, key=lambda r: _PREFERENCE.index(r.status))
        if record.status == "conflict":
            choices = " or ".join(r.identity for r in found if r.status == "conflict")
            raise PluginError(record.reason, fix=f"name it in full ({choices}), or uninstall or disable one of them")
        if record.status != "ok":
            raise _unusable(record)
        return record

    def spec(self, kind: str, name: str) -> PluginSpec:
        """Return a plugin's front door, importing nothing else of it."""
        from pegboard.plugins.doors import DoorError, open_door

        record = self.record(kind, name)
        key = kind, record.identity
        if key not in self._specs:
            try:
                self._specs[key] = open_door(record)
            except DoorError as error:
                self._failures[key] = replace(record, status=error.status, reason=str(error))
                raise _unusable(self._failures[key]) from error
        return self._specs[key]

    def load(self, kind: str, name: str) -> Any:
        """Import and return a plugin's implementation (its spec's `target`)."""
        from pegboard.plugins.doors import import_object

        spec, record = self.spec(kind, name), self.record(kind, name)
        try:
            return import_object(spec.target)
        except Exception as error:
            reason = f"{spec.target} cannot be imported: {type(error).__name__}: {error}"
            self._failures[kind, record.identity] = replace(record, status="failed", reason=reason)
            raise _unusable(self._failures[kind, record.identity]) from error

    def schema(self, kind: str, name: str) -> type[BaseModel] | None:
        """Return the pydantic model of a plugin's options, or None when it takes none."""
        from pegboard.plugins.doors import load_schema

        return load_schema(self.spec(kind, name), f"{kind} {name!r} of {self.record(kind, name).dist}")

    def create(self, kind: str, choice: str | Mapping[str, Any]) -> Any:
        """Return an instance of the plugin that `choice` names.

        choice: "NAME", or {"use": "NAME", **options}, or {"use": "module:Class", **options} for a user's own class.
        Raises ConfigError for wrong options, PluginError when the plugin cannot be had.
        """
        return self.resolve(kind, choice).create()

    def resolve(self, kind: str, choice: str | Mapping[str, Any]) -> ResolvedChoice:
        """Return `choice` as a small value from which any process creates exactly the same, without a scan."""
        from pegboard.plugins.resolve import ResolvedChoice

        use, options = split_choice(kind, choice)
        if self.is_custom(kind, use):
            return ResolvedChoice(kind, use, "", "", use, GROUPS[kind].version, None, options)
        spec, record = self.spec(kind, use), self.record(kind, use)
        return ResolvedChoice(
            kind, record.name, record.dist, record.version, spec.target, spec.interface, spec.schema, options
        )

    def is_custom(self, kind: str, use: str) -> bool:
        """Whether `use` is "module:Class" rather than the name of a plugin."""
        return ":" in use and not any(use == r.identity for r in self.records(kind))

    def match(self, kind: str, capability: str, value: str) -> list[str]:
        """Return the names of usable plugins whose capability is or lists `value` ("true" means True), best first."""
        found = []
        for record, spec in self.candidates(kind):
            held = spec.capabilities.get(capability)
            held = held if isinstance(held, (list, tuple, set, frozenset)) else [held]
            if value in held or (value == "true" and any(item is True for item in held)):
                found.append(record.name)
        return found

    def candidates(self, kind: str, *, rivals: bool = False) -> list[tuple[PluginRecord, PluginSpec]]:
        """Return the usable plugins of a kind by priority, then name. One that fails is warned about once and left out.

        rivals: whether those that share a name are among them; they are told apart by their records' `identity`.
        """
        found = []
        for record in self.records(kind):
            if record.status == "blocked":
                continue
            try:
                by_name = record.status == "conflict" and not rivals
                found.append((record, self.spec(kind, record.name if by_name else record.identity)))
            except PluginError:
                known = self._failures.get((kind, record.identity), record)
                self.warn_once(f"passing by {kind} {record.identity}: {known.reason}")
        return sorted(found, key=lambda pair: (-pair[1].priority, pair[0].name, pair[0].dist))

    def auto(self, kind: str) -> Choice:
        """Choose by priority among the plugins that their probes find usable, and log why in one line.

        Raises PluginError when a plugin's thing is present but broken, or when nothing is left.
        """
        from pegboard.plugins.choose import choose

        choice = choose(self, kind)
        if choice.worth_telling and choice.line not in self._announced:
            self._announced.add(choice.line)
            log.info("%s", choice.line)
        return choice

    def warn_once(self, line: str) -> None:
        """Log a warning line, unless this registry has done so before."""
        if line not in self._announced:
            self._announced.add(line)
            log.warning("%s", line)

    @property
    def hooks(self) -> HookRelay:
        """The observers, loaded at first use. Nobody asked for them: one that fails is left out with a warning line."""
        from pegboard.plugins.hooks import HookRelay

        if self._hooks is None:
            self._hooks = HookRelay(self.warn_once)
            for record, _ in self.candidates("hooks", rivals=True):
                try:
                    self._hooks.register(self.create("hooks", record.identity), record.identity)
                except Exception as error:
                    why = f"{type(error).__name__}: {getattr(error, 'message', error)}"
                    self.warn_once(f"observer {record.identity} is left out: {why}")
        return self._hooks


def split_choice(kind: str, choice: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and options of a choice. Raises ConfigError when it names nothing."""
    _known(kind)
    if isinstance(choice, str):
        choice = {"use": choice}
    if not isinstance(choice, Mapping):
        raise ConfigError(f"{kind} is {choice!r}", fix="write a plugin's name, or a mapping with the key `use`")
    use = choice.get("use")
    if not isinstance(use, str) or not use:
        raise ConfigError(
            f"the choice of {kind} has no `use`: {dict(choice)!r}",
            fix=f"`peg plugins list --kind {kind}` shows the names",
        )
    return use, {key: value for key, value in choice.items() if key != "use"}


def _known(kind: str) -> str:
    if kind not in GROUPS:
        raise PluginError(
            f"there is no plugin kind {kind!r}{nearest(kind, GROUPS)}", fix=f"kinds are: {', '.join(GROUPS)}"
        )
    return kind


def _unknown(kind: str, name: str, installed: list[str]) -> PluginError:
    from pegboard.plugins.known import known_plugins

    known = known_plugins().get(kind, {})
    have = ", ".join(sorted(set(installed))) or "none"
    fix = f"correct the name, or install what offers it; `peg plugins list --kind {kind}` shows what is installed"
    if name in known:
        fix = f"pip install {known[name]}"
    hint = "" if name in known else nearest(name, {*installed, *known})
    return PluginError(f"no installed plugin offers {kind} {name!r}{hint}; installed: {have}", fix=fix)


def _unusable(record: PluginRecord) -> PluginError:
    what = f"{record.kind} {record.name!r}" + (f" of {record.dist}" if record.dist else "")
    verb = "failed" if record.status == "failed" else f"is {record.status}"
    return PluginError(f"{what} {verb}: {record.reason}", fix=mend(record))


def mend(record: PluginRecord) -> str:
    """Return what a user can do about a record's status."""
    if record.status == "blocked":
        return f"take it off the block-list ({BLOCK_VARIABLE}, plugins.disabled) or put it on the list {ALLOW_VARIABLE}"
    if record.status == "incompatible":
        return f"pip install --upgrade pegboard {record.dist}"
    if record.status == "conflict":
        return f"name it in full ({record.identity}), or uninstall or disable one of them"
    return f"pip install --upgrade --force-reinstall {record.dist}; `peg plugins check {record.name}` shows more"
