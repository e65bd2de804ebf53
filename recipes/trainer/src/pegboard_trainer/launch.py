"""Launcher `local`: the processes of a run as children of this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

from pegboard.interfaces.launcher import Launcher

GRACE = 5.0
"""Seconds that the others have to end by themselves after one process failed: a user's mistake fails in each of them."""


class LocalLauncher(Launcher):
    """Starts processes on this machine. The first one speaks; what another one says is shown if it was the one that failed."""

    def launch(self, arguments: Sequence[str], processes: int) -> int:
        """Run `peg` in so many processes."""
        port = _free_port()
        children: list[subprocess.Popen[bytes]] = []
        said: list[IO[bytes] | None] = []
        try:
            for rank in range(processes):
                errors = None if rank == 0 else tempfile.TemporaryFile()
                said.append(errors)
                children.append(_start(arguments, rank, processes, port, errors))
            with _forwarding(children):
                failed = _wait(children)
            if failed is None:
                return 0
            text = said[failed]
            if text is not None:
                text.seek(0)
                sys.stderr.write(text.read().decode(errors="replace"))
            status = children[failed].returncode
            return status if status > 0 else 128 - status
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            for file in said:
                if file is not None:
                    file.close()


def _start(
    arguments: Sequence[str], rank: int, processes: int, port: int, errors: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_PORT": port,
    }
    env = {"MASTER_ADDR": "127.0.0.1", **os.environ, **{key: str(value) for key, value in place.items()}}
    env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    return subprocess.Popen(
        [sys.executable, "-m", "pegboard", *arguments],
        env=env,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # a Ctrl-C reaches each of them once, through here
    )


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the number of the process that failed, None when all ended well. The first one counts where it failed by itself."""
    failed: int | None = None
    deadline = float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        if failed is None:
            failed = next((i for i, child in enumerate(children) if child.poll()), None)
            if failed is not None:
                deadline = time.monotonic() + GRACE
        time.sleep(0.05)
    if children[0].poll():
        return 0
    return failed if failed is not None else next((i for i, child in enumerate(children) if child.poll()), None)


@contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hand the signals that ask for a stop to all processes."""

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
