"""Trying plugins in child processes with a time limit: one that hangs or crashes is reported like any other.

`python -m pegboard.plugins.check KIND DIST:NAME` is the child; it prints one JSON object as its last line.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pegboard.errors import PegboardError
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import PluginRecord


@dataclass(frozen=True, slots=True)
class Trial:
    """What trying one plugin gave. status: a record's status, or "hangs" or "crashes"."""

    kind: str
    name: str
    dist: str
    status: str
    reason: str


def check_all(records: Iterable[PluginRecord], *, timeout: float) -> list[Trial]:
    """Try the plugins, a few at a time. timeout: seconds for each, the import of its libraries included."""
    with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda record: check(record, timeout=timeout), records))


def check(record: PluginRecord, *, timeout: float) -> Trial:
    """Try one plugin in a child process. One that its record speaks against already is not imported."""
    if record.status not in ("ok", "conflict"):
        return _trial(record, record.status, record.reason)
    command = [sys.executable, "-m", "pegboard.plugins.check", record.kind, record.identity]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # The whole group: a plugin may have started processes of its own, which would keep the pipes open.
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return _trial(record, "hangs", f"its import took more than {timeout:g} s and was stopped")
    try:
        told = json.loads(out.splitlines()[-1])
        return _trial(record, str(told["status"]), str(told["reason"]))
    except (ValueError, IndexError, KeyError, TypeError):
        last = err.strip().splitlines()[-1] if err.strip() else "it said nothing"
        ended = (
            f"signal {signal.Signals(-child.returncode).name}" if child.returncode < 0 else f"status {child.returncode}"
        )
        return _trial(record, "crashes", f"the process that imported it ended with {ended}: {last}")


def try_here(kind: str, identity: str) -> dict[str, str]:
    """Import front door, schema and implementation in this process and compare the latter with its interface."""
    from pegboard.plugins.load import Registry

    registry = Registry.discover()
    try:
        registry.spec(kind, identity)
        registry.schema(kind, identity)
        lacking = complaint(kind, registry.load(kind, identity))
    except PegboardError as error:
        state = next((r for r in registry.records(kind) if r.identity == identity), None)
        status = state.status if state is not None and state.status != "ok" else "failed"
        return {"status": status if status != "conflict" else "failed", "reason": error.message}
    return {"status": "failed", "reason": lacking} if lacking else {"status": "ok", "reason": ""}


def complaint(kind: str, target: Any) -> str:
    """Return what an implementation lacks of its kind's interface, or an empty string."""
    if inspect.isabstract(target):
        return f"{target.__name__} lacks {', '.join(sorted(target.__abstractmethods__))}"
    if kind == "command":
        import click

        return "" if isinstance(target, click.Command) else f"it is a {type(target).__name__}, expected a click.Command"
    if kind == "hooks":
        return ""
    from pegboard.plugins.doors import import_object

    interface = import_object(GROUPS[kind].interface)
    if isinstance(target, type) and not issubclass(target, interface):
        return f"{target.__name__} is no subclass of {interface.__module__}.{interface.__name__}"
    return "" if callable(target) else f"it is a {type(target).__name__}, expected a class"


def _trial(record: PluginRecord, status: str, reason: str) -> Trial:
    return Trial(record.kind, record.name, record.dist, status, reason)


if __name__ == "__main__":
    print("\n" + json.dumps(try_here(sys.argv[1], sys.argv[2])))
