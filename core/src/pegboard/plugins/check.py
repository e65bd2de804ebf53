"""Trying plugins in child processes with a time limit: one that hangs or crashes is reported like any other.

`python -m pegboard.plugins.check QUESTION KIND DIST:NAME` is the child; it answers with one marked line of JSON.
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
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, get_args

from pegboard.errors import PegboardError
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.index import PluginRecord, Status, scan
from pegboard.plugins.load import Registry, mend
from pegboard.plugins.spec import PluginSpec

Question = Literal["door", "schema", "import", "devices", "advice"]
"""What a plugin is asked.

door: its front door is opened. schema: and the JSON schema of its options made. import: and its implementation imported,
which is compared with its interface. devices: a platform's probe, its devices and what computes on them. advice: what an
observer's `doctor` hook says.
"""

MARK = "pegboard answers "


@dataclass(frozen=True, slots=True)
class Answer:
    """What a plugin answered.

    status: a record's status, "hangs", "crashes", or "absent" where a platform's probe finds nothing.
    reason: "ok" has one where the plugin shares its name. lines: what was asked for, the schema being one.
    """

    status: str
    reason: str = ""
    fix: str = ""
    lines: tuple[str, ...] = ()


def ask_all(questions: Iterable[tuple[Question, PluginRecord]], *, timeout: float) -> list[Answer]:
    """Ask several plugins, a few at a time. timeout: seconds for each, the import of its libraries included."""
    children: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1)))
    try:
        return list(pool.map(lambda pair: ask(*pair, timeout=timeout, children=children), questions))
    except BaseException:
        # Ctrl-C does not reach the children, each of which leads a group of its own.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(children):
            _kill(child)
        raise
    finally:
        pool.shutdown()


def ask(
    question: Question,
    record: PluginRecord,
    *,
    timeout: float,
    children: set[subprocess.Popen[str]] | None = None,
) -> Answer:
    """Ask one plugin in a child process, which is in `children` while it runs.

    A plugin that its record speaks against already is not imported. Whatever is wrong comes with a fix.
    """
    answer = Answer(record.status, record.reason)
    if record.status in ("ok", "conflict"):
        answer = _run(question, record, timeout, set() if children is None else children)
    if answer.status in ("ok", "absent"):
        return replace(answer, reason=answer.reason or record.reason, fix=mend(record) if record.reason else "")
    status: Status = answer.status if answer.status in ("blocked", "incompatible") else "failed"  # type: ignore[assignment]
    return replace(answer, fix=answer.fix or mend(replace(record, status=status)))


def _run(question: Question, record: PluginRecord, timeout: float, children: set[subprocess.Popen[str]]) -> Answer:
    # -P: a module in the working directory must not stand in for one of the plugin's.
    command = [sys.executable, "-P", "-m", "pegboard.plugins.check", question, record.kind, record.identity]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    children.add(child)
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(child)
        child.communicate()
        return Answer("hangs", f"it did not come to an end within {timeout:g} s and was stopped")
    finally:
        children.discard(child)
    told = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    if not told or child.returncode != 0:
        last = err.strip().splitlines()[-1] if err.strip() else "it said nothing"
        return Answer("crashes", f"the process that imported it ended with {_ending(child.returncode)}: {last}")
    status, reason, fix, lines = json.loads(told[-1])
    return Answer(status, reason, fix, tuple(lines))


def answer_here(question: Question, kind: str, identity: str) -> Answer:
    """Answer in this process. Whatever a plugin raises becomes a status with its reason."""
    registry = Registry(scan())
    try:
        spec = registry.spec(kind, identity)
        if question in ("schema", "import"):
            schema = registry.schema(kind, identity)
            described = json.dumps(schema.model_json_schema() if schema else None)
        if question == "schema":
            return Answer("ok", lines=(described,))
        if question == "import" and (lacking := complaint(kind, registry.load(kind, identity))):
            return Answer("failed", lacking)
        if question == "devices":
            return _devices(registry, spec, identity)
        if question == "advice":
            return _advice(registry, identity)
    except PegboardError as error:
        known = next(r for r in registry.records(kind) if r.identity == identity)
        told = known.status in ("incompatible", "failed")
        return Answer(known.status, known.reason) if told else Answer("failed", error.message, error.fix or "")
    except (Exception, SystemExit) as error:
        return Answer("failed", f"{type(error).__name__}: {error}")
    return Answer("ok")


def complaint(kind: str, target: Any) -> str:
    """Return what an implementation lacks of its kind's interface, or an empty string."""
    if kind == "command":
        import click

        return "" if isinstance(target, click.Command) else f"it is a {type(target).__name__}, expected a click.Command"
    if inspect.isabstract(target):
        return f"{target.__name__} lacks {', '.join(sorted(target.__abstractmethods__))}"
    if kind == "hooks":
        return ""
    from pegboard.plugins.doors import import_object

    interface = import_object(GROUPS[kind].interface)
    if isinstance(target, type) and not issubclass(target, interface):
        return f"{target.__name__} is no subclass of {interface.__module__}.{interface.__name__}"
    return "" if callable(target) else f"it is a {type(target).__name__}, expected a class"


def _devices(registry: Registry, spec: PluginSpec, identity: str) -> Answer:
    from pegboard.plugins.doors import run_probe

    probe = run_probe(spec)
    if not probe.present:
        return Answer("absent", probe.reason)
    if not probe.usable:
        return Answer("failed", f"it is present but not usable: {probe.reason}")
    if lacking := complaint(spec.kind, registry.load(spec.kind, identity)):
        return Answer("failed", lacking)
    from pegboard.survey import survey

    return Answer("ok", lines=tuple(survey(registry, registry.create(spec.kind, identity))))


def _advice(registry: Registry, identity: str) -> Answer:
    from pegboard.plugins.hooks import HookRelay

    warnings: list[str] = []
    relay = HookRelay(warnings.append)
    relay.register(registry.create("hooks", identity), identity)
    told = [[lines] if isinstance(lines, str) else lines for lines in relay.call("doctor")]
    if warnings:
        return Answer("failed", warnings[0])
    return Answer("ok", lines=tuple(str(line) for lines in told for line in lines))


def _kill(child: subprocess.Popen[str]) -> None:
    """Kill a child with its whole group: a plugin may have started processes of its own, which keep the pipes open."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(returncode: int) -> str:
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"status {returncode}"


if __name__ == "__main__":
    asked, *of_whom = sys.argv[1:]
    if asked not in get_args(Question):
        raise SystemExit(f"unknown question {asked!r}")
    print(f"\n{MARK}{json.dumps(astuple(answer_here(asked, *of_whom)))}", flush=True)  # type: ignore[arg-type]
