"""Plugins are tried in child processes: whatever they do, there is an answer in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from pegboard.plugins.check import Answer, Question, ask, ask_all, complaint
from pegboard.plugins.index import PluginRecord, scan

DOOR = "from pegboard.plugins.spec import PluginSpec, Probe\n"
CRASHES = {
    "exit": ("import os; os._exit(7)", "ended with status 7: it said nothing"),
    "segfault": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal SIGSEGV"),
    "last words": ("import os, sys; print('no memory', file=sys.stderr, flush=True); os.abort()", "SIGABRT: no memory"),
    "at exit": (
        "import atexit, os; atexit.register(os._exit, 3)\n" + DOOR + "S = PluginSpec(kind='adapter', target='m:T')",
        "ended with status 3",
    ),
}


def record(name: str, kind: str = "adapter") -> PluginRecord:
    return next(r for r in scan().of_kind(kind) if r.name == name)


def install(site, source: str, kind: str = "adapter", name: str = "thing") -> PluginRecord:
    module = f"checked_{name}"
    site.add(f"{name}-peg", {(kind, name): f"{module}:S"}, {module: source})
    return record(name, kind)


def test_one_that_works(site) -> None:
    door = f"{DOOR}S = PluginSpec(kind='hooks', target=__name__ + ':Watch')\nclass Watch: ...\n"
    assert ask("import", install(site, door, "hooks"), timeout=6000) == Answer("ok")


@pytest.mark.parametrize("case", CRASHES)
def test_crashes_are_reported(site, case: str) -> None:
    source, reason = CRASHES[case]
    answer = ask("door", install(site, source), timeout=6000)
    assert answer.status == "crashes"
    assert reason in answer.reason


def test_a_hang_is_stopped_with_all_its_processes(site, hang: str) -> None:
    pids = site.folder / "pids"
    source = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(6000)'])\n"
        f"with open({str(pids)!r}, 'w') as file: file.write(f'{{child.pid}}')\n"
    )
    answer = ask("door", install(site, source + hang), timeout=0.5)
    assert (answer.status, answer.reason) == ("hangs", "it did not come to an end within 0.5 s and was stopped")
    grandchild = int(pids.read_text())
    while _alive(grandchild):
        time.sleep(0.05)


def test_an_interrupt_stops_the_children(site) -> None:
    started = site.folder / "started"
    records = []
    for name in ("one", "two", "three"):
        source = f"import time\nopen({str(started)!r}, 'a').write('x')\ntime.sleep(6000)\n"
        records.append(install(site, source, name=name))

    def interrupt() -> None:
        while not started.exists():
            time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    assert main is not None
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ask_all([("door", r) for r in records], timeout=6000)  # so it would come to its end too late
    thread.join()


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("1/0", "failed", "ZeroDivisionError"),
        ("raise SystemExit(0)", "failed", "SystemExit"),
        ("S = None", "failed", "expected a PluginSpec"),
        (DOOR + "S = PluginSpec(kind='adapter', target='m:T', interface=9)", "incompatible", "follows version 9"),
        (DOOR + "S = PluginSpec(kind='adapter', target='no_such:T')", "failed", "No module named 'no_such'"),
        (DOOR + "S = PluginSpec(kind='adapter', target='json:T')", "failed", "json has no 'T'"),
        (DOOR + "S = PluginSpec(kind='adapter', target='json:loads', schema='json:x')", "failed", "schema json:x"),
        (DOOR + "S = PluginSpec(kind='adapter', target='collections:OrderedDict')", "failed", "no subclass of"),
        (DOOR + "S = PluginSpec(kind='adapter', target='sys:maxsize')", "failed", "is a int, expected a class"),
        (DOOR + "print('noise')\nS = PluginSpec(kind='adapter', target='json:loads')", "ok", ""),
    ],
)
def test_what_an_import_gives(site, source: str, status: str, reason: str) -> None:
    answer = ask("import", install(site, source), timeout=6000)
    assert answer.status == status
    assert reason in answer.reason
    assert "checked_thing" not in sys.modules


def test_what_its_record_speaks_against_is_not_imported(site, monkeypatch) -> None:
    install(site, "")
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "thing")
    answer = ask("import", record("thing"), timeout=6000)
    assert answer.status == "blocked"
    assert site.imported() == []


def test_one_of_two_rivals_is_tried_and_told_about(site) -> None:
    source = DOOR + "S = PluginSpec(kind='adapter', target='json:loads')"
    install(site, source)
    site.add("rival-peg", {("adapter", "thing"): "rival:S"}, {"rival": "1/0"})
    answers = ask_all([("door", r) for r in scan().of_kind("adapter") if r.name == "thing"], timeout=6000)
    assert [answer.status for answer in answers] == ["failed", "ok"]
    assert "offered by rival-peg 1.0 and thing-peg 1.0" in answers[1].reason
    assert "thing-peg:thing" in answers[1].fix


def test_a_module_of_the_working_directory_does_not_stand_in(site, tmp_path, monkeypatch) -> None:
    (tmp_path / "json.py").write_text("1/0\n")
    monkeypatch.chdir(tmp_path)
    assert (
        ask("door", install(site, DOOR + "S = PluginSpec(kind='adapter', target='m:T')"), timeout=6000).status == "ok"
    )


PLATFORM = """
from pegboard.plugins.spec import PluginSpec, Probe
from pegboard.interfaces.platform import DeviceInfo, Platform
def probe():
    {probe}
class Fake(Platform):
    def devices(self):
        {devices}
    def device(self, index=0):
        return "cpu"
    def capabilities(self, index=0):
        return frozenset()
    def default_dtype(self, index=0):
        return "torch.float32"
    def attention_preference(self, phase, spec):
        return ("loops",)
    def synchronize(self, index=0):
        pass
S = PluginSpec(kind="platform", target=__name__ + ":Fake", probe=__name__ + ":probe")
"""
THERE = "return Probe(True, True, 'here')"


@pytest.mark.parametrize(
    ("probe", "devices", "expected"),
    [
        ("return Probe(False, False, 'no driver')", "1/0", Answer("absent", "no driver")),
        (
            "return Probe(True, False, 'old driver')",
            "1/0",
            Answer("failed", "it is present but not usable: old driver"),
        ),
        (THERE, "return []", Answer("ok")),
        (THERE, "1/0", Answer("failed", "ZeroDivisionError: division by zero")),
        ("raise OSError('odd')", "", Answer("failed", "OSError: odd")),
        (
            THERE,
            "return [DeviceInfo(1, 'Big', 2**31, 2**30)]",
            Answer(
                "ok",
                lines=(
                    "1 Big, 1.0 of 2.0 GiB available",
                    "  nothing beyond plain computing; dtype auto is float32",
                    "  attention: train, prefill, decode: none (loops: not installed)",
                    "  kernels: train, prefill, decode: torch's alone",
                ),
            ),
        ),
    ],
)
def test_devices(site, probe: str, devices: str, expected: Answer) -> None:
    source = PLATFORM.format(probe=probe, devices=devices or "return []")
    answer = ask("devices", install(site, source, "platform"), timeout=6000)
    assert replace(answer, fix="") == expected
    assert ("--force-reinstall thing-peg" in answer.fix) == (expected.status == "failed")


WATCH = """
from pegboard.plugins.hooks import hookimpl
from pegboard.plugins.spec import PluginSpec
class Watch:
    @hookimpl
    def doctor(self):
        {body}
S = PluginSpec(kind="hooks", target=__name__ + ":Watch")
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return ['a', 'b']", Answer("ok", lines=("a", "b"))),
        ("return 'one line'", Answer("ok", lines=("one line",))),
        ("return None", Answer("ok")),
        ("return 3", Answer("failed", "TypeError: 'int' object is not iterable")),
    ],
)
def test_advice(site, body: str, expected: Answer) -> None:
    assert replace(ask("advice", install(site, WATCH.format(body=body), "hooks"), timeout=6000), fix="") == expected


def test_advice_of_one_that_raises(site) -> None:
    answer = ask("advice", install(site, WATCH.format(body="1/0"), "hooks"), timeout=6000)
    assert answer.status == "failed"
    assert "raised in doctor and is muted: ZeroDivisionError" in answer.reason


def test_complaints() -> None:
    import click

    from pegboard.interfaces.logger import Logger

    class Half(Logger):
        def finish(self, status: str) -> None: ...

    assert complaint("command", click.Command("x")) == ""
    assert "expected a click.Command" in complaint("command", len)
    assert complaint("logger", Half) == "Half lacks log, start"
    assert "no subclass of pegboard.interfaces.logger.Logger" in complaint("logger", dict)
    assert complaint("logger", lambda options: Half) == ""


def test_questions_are_fixed() -> None:
    assert set(Question.__args__) == {"door", "schema", "import", "devices", "advice"}  # type: ignore[attr-defined]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    finally:
        os.sched_yield()
