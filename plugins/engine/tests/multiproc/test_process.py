"""Workers that misbehave: small programs in the place of the real one."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegboard.interfaces.executor import ExecutorDied
from pegboard_engine.multiproc.process import WorkerProcess
from pegboard_engine.multiproc.values import pack

ONCE = 200.0
"""Seconds that nothing here takes."""
TALK = """
import os, socket, sys, time
connection = socket.socket(fileno=int(sys.argv[1]))
def say(text):
    connection.sendall(b"PEGB" + len(text).to_bytes(4, "little") + b"\\0" + text)
"""
SLEEP = "time.sleep(1000)\n"
Spawn = Callable[[str], WorkerProcess]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Return a function that starts a worker of the given program; none may be left afterwards."""
    workers: list[WorkerProcess] = []

    def make(code: str) -> WorkerProcess:
        workers.append(WorkerProcess(3, TALK + code))
        return workers[-1]

    yield make
    for worker in workers:
        worker.kill()
        assert not is_alive(worker.pid)


def is_alive(pid: int) -> bool:
    """Whether a process goes on. One that ended and that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os._exit(7)", "ended with status 7"),
        ("os.kill(os.getpid(), 9)", r"was ended by SIGKILL \(is there enough memory\?\)"),
        ("os.kill(os.getpid(), 15)", "was ended by SIGTERM"),
        ("raise LookupError('no such layer')", "ended with status 1\n(.*\n)+  LookupError: no such layer"),
        ("connection.sendall(b'Segmentation fault')\n" + SLEEP, "answered with garbage: it begins with b'Segm"),
        ('say(b\'["log",0,0,[],["list",1]]\')\n' + SLEEP, "answered with garbage: not enough values"),
    ],
    ids=str,
)
def test_how_a_worker_was_lost_is_told(spawn: Spawn, code: str, reason: str) -> None:
    worker = spawn(code)
    with pytest.raises(ExecutorDied, match=rf"worker 3 \(process {worker.pid}\) {reason}"):
        worker.receive(ONCE)
    assert not is_alive(worker.pid)


def test_a_worker_that_closes_its_connection_and_goes_on_is_ended(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegboard_engine.multiproc.process._TO_DIE", 0.3)
    worker = spawn("connection.close()\n" + SLEEP)
    with pytest.raises(ExecutorDied, match="closed its connection"):
        worker.receive(ONCE)
    assert not is_alive(worker.pid)


def test_where_a_worker_hangs_is_told(spawn: Spawn) -> None:
    worker = spawn(
        "import faulthandler, signal\n"
        "faulthandler.register(signal.SIGUSR1, all_threads=False)\n"
        "def attend():\n    say(b'[\"done\",0,0,[],null]')\n    time.sleep(1000)\n"
        "attend()\n"
    )
    assert worker.receive(ONCE).kind == "done"
    with pytest.raises(ExecutorDied, match=r"has not answered for 0.2 s\n(.*\n)+.* in attend") as caught:
        worker.receive(0.2)
    assert "most recent call first" in str(caught.value).splitlines()[1]


def test_a_worker_that_reads_nothing_is_lost_in_time(spawn: Spawn) -> None:
    worker = spawn(SLEEP)
    with pytest.raises(ExecutorDied, match=r"has not taken a message for 0.1 s"):
        worker.send("load", pack("x" * 10_000_000), 0.1)


def test_what_it_writes_goes_to_the_log_and_never_blocks_it(spawn: Spawn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pegboard.engine.worker")
    worker = spawn(
        "for n in range(2000):\n    print('line', n)\n"
        "os.write(2, b'x' * 200000)\n"
        'say(b\'["log",0,0,[],["tuple",30,"pegboard.models","a warning"]]\')\n'
        "say(b'[\"done\",0,0,[],1]')\n" + SLEEP
    )
    message = worker.receive(ONCE)
    assert (message.kind, message.value) == ("done", 1)
    assert ("pegboard.models", logging.WARNING, "worker 3: a warning") in caplog.record_tuples
    texts = [record.getMessage() for record in caplog.records]
    assert texts[:2] == ["worker 3: line 0", "worker 3: line 1"]
    assert "worker 3: line 1999" in texts
    assert max(map(len, texts)) < 140_000


def test_stop_asks_then_insists(
    spawn: Spawn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    willing = spawn("connection.recv(100)\nos._exit(0)")
    willing.stop(ONCE)
    assert not caplog.records
    assert willing._process.returncode == 0
    monkeypatch.setattr("pegboard_engine.multiproc.process._TO_DIE", ONCE)
    terminated = spawn(SLEEP)
    terminated.stop(0.1)
    assert terminated._process.returncode == -15
    stubborn = spawn("import signal\nsignal.signal(15, signal.SIG_IGN)\nsay(b'[\"done\",0,0,[],1]')\n" + SLEEP)
    stubborn.receive(ONCE)
    monkeypatch.setattr("pegboard_engine.multiproc.process._TO_DIE", 0.1)
    stubborn.stop(0.1)
    assert stubborn._process.returncode == -9
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    for worker in (willing, terminated, stubborn):
        worker.stop(0.1)
        worker.kill()


def test_nothing_is_left_after_many(spawn: Spawn) -> None:
    gc.collect()  # what other tests left
    before = sorted(os.listdir("/dev/fd"))
    for _ in range(20):
        worker = WorkerProcess(0, TALK + SLEEP)
        worker.kill()
        assert not is_alive(worker.pid)
    gc.collect()
    assert sorted(os.listdir("/dev/fd")) == before


def test_a_worker_that_is_forgotten_is_ended() -> None:
    gc.collect()  # what other tests left
    before = sorted(os.listdir("/dev/fd"))
    worker = WorkerProcess(0, TALK + SLEEP)
    pid = worker.pid
    del worker
    gc.collect()
    assert not is_alive(pid)
    assert sorted(os.listdir("/dev/fd")) == before


@pytest.mark.slow
def test_a_fork_of_the_parent_leaves_the_worker_alone() -> None:
    code = (
        "import atexit, os\n"
        "from pegboard_engine.multiproc.process import WorkerProcess\n"
        "worker = WorkerProcess(0, 'import time; time.sleep(1000)')\n"
        "if not (child := os.fork()):\n    atexit._run_exitfuncs()\n    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert worker._process.poll() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_workers_import_from_the_places_that_their_parent_does(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/somewhere else"])
    worker = spawn("print(sys.path[-1])\nos._exit(0)")
    with pytest.raises(ExecutorDied, match="/somewhere else"):
        worker.receive(ONCE)


@pytest.mark.slow
def test_the_real_worker_ends_with_its_parent() -> None:
    code = (
        "import time\n"
        "from pegboard_engine.multiproc.process import WorkerProcess\n"
        "print(WorkerProcess(0).pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(3)
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while is_alive(pid):
        time.sleep(0.05)
