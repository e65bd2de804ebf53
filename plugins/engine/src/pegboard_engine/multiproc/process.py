"""A worker as its parent sees it: a process, a channel, and what it writes to its standard error."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from pegboard.errors import ConfigError
from pegboard.interfaces.executor import ExecutorDied
from pegboard_engine.multiproc.channel import Channel, ChannelClosed, Message
from pegboard_engine.multiproc.values import MessageError

log = logging.getLogger("pegboard.engine.worker")

_KEPT_LINES, _TOLD_LINES, _LONGEST_LINE, _LONGEST_READ = 100, 8, 300, 1 << 16
_TO_DIE = 5.0
"""Seconds that a process gets to end by itself once it was asked to, or to begin to answer a signal."""
_TO_ANSWER = 0.2
"""Seconds without another line after which an answer is whole."""
_TO_BE_KILLED = 60.0
"""Seconds after SIGKILL, which no process withstands: what takes that long is the system giving back its memory."""

# The worker imports what its parent would, from the same places. Ctrl-C in a terminal goes to the whole group: the parent decides.
_PREPARE = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import json
sys.path[:] = json.loads(sys.argv[2])
"""
_CODE = """
from pegboard_engine.multiproc.worker import main
main(int(sys.argv[1]))
"""


class WorkerProcess:
    """One worker. Each method that waits has a time limit; once the worker is lost, `died` says how, and the process is gone."""

    def __init__(self, rank: int, code: str = _CODE) -> None:
        """Start a process that runs `code`, with the number of its socket and the import path as arguments.

        Raises ConfigError where processes cannot share memory this way.
        """
        if not hasattr(socket, "send_fds"):
            raise ConfigError("this system has no Unix sockets for executor 'multiproc'", fix="use executor uniproc")
        self.rank = rank
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._rest = b""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        os.set_blocking(read, False)
        arguments = [str(theirs.fileno()), json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PREPARE + code, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            os.close(read)
            raise
        finally:
            theirs.close()
            os.close(write)
        self._stderr = read
        self._channel = Channel(ours, copy=True, aside=(read, self._read_stderr))
        self._end = weakref.finalize(self, _end, self._process, ours, read, os.getpid())

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def what(self) -> str:
        """The worker for messages."""
        return f"worker {self.rank} (process {self.pid})"

    def send(self, kind: str, packed: tuple[Any, Sequence[np.ndarray]], timeout: float, *, own: bool = False) -> int:
        """Send a message and return its number.

        Raises ExecutorDied; OSError and TypeError, as `Channel.send` does, which leave the worker as it was.
        """
        try:
            return self._channel.send_packed(kind, packed, timeout=timeout, own=own)
        except ChannelClosed:
            raise self.died() from None
        except TimeoutError:
            raise self.died(f"has not taken a message for {timeout:.3g} s") from None

    def receive(self, timeout: float) -> Message:
        """Wait for a message; those for the log go there. Raises ExecutorDied."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self._channel.receive(max(0.0, deadline - time.monotonic()))
            except ChannelClosed:
                raise self.died() from None
            except TimeoutError:
                where = self._ask_where_it_hangs()
                raise self.died(f"has not answered for {timeout:.3g} s", where) from None
            except MessageError as error:
                raise self.died(f"answered with garbage: {error}") from error
            if message.kind != "log":
                return message
            try:
                level, name, text = message.value
                logging.getLogger(name).log(level, "worker %d: %s", self.rank, text)
            except (TypeError, ValueError) as error:
                raise self.died(f"answered with garbage: {error}") from error

    def died(self, reason: str | None = None, told: Sequence[str] = ()) -> ExecutorDied:
        """End the process if it has not ended, free what belongs to it, and return an error that says why and what it wrote last.

        reason: what it did; None where it has gone by itself. told: lines that count more than the last ones.
        """
        if reason is None:
            code = self._wait(_TO_DIE)
            reason = "closed its connection" if code is None else _ended(code)
        self.kill()
        last = told or [line for line in self._lines if line.strip()][-_TOLD_LINES:]
        return ExecutorDied("\n  ".join([f"{self.what} {reason}", *(line[:_LONGEST_LINE] for line in last)]))

    def stop(self, timeout: float) -> None:
        """Ask the process to end, then make it; free what belongs to it. Safe to call twice."""
        if not self._end.alive:
            return
        try:
            self._channel.send("stop", timeout=timeout)
        except (ChannelClosed, TimeoutError):
            pass  # then it is ended all the more
        if self._wait(timeout) is None:
            log.warning("%s does not stop; it is ended", self.what)
            self._process.terminate()
            self._wait(_TO_DIE)
        self.kill()

    def kill(self) -> None:
        """End the process at once, if it has not ended, and free what belongs to it. Safe to call twice."""
        if not self._end.alive:
            return
        self._process.kill()
        self._wait(_TO_BE_KILLED)
        self._read_stderr()
        self._channel.close()
        self._end()

    def _wait(self, timeout: float) -> int | None:
        """Wait for the end of the process, reading what it writes; return its status, None when it goes on."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._stderr, select.POLLIN)
        pause = 0.001
        while (code := self._process.poll()) is None and (left := deadline - time.monotonic()) > 0:
            # The pipe closes with the process, unless a child of it holds it open.
            if not poll.poll(min(left, 0.05) * 1000) or self._read_stderr():
                continue
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.05)
        return code

    def _ask_where_it_hangs(self) -> list[str]:
        """Let it write its stack to its standard error, innermost call first, and return the first lines."""
        self._lines.clear()
        self._process.send_signal(signal.SIGUSR1)
        end, heard = time.monotonic() + _TO_DIE, 0
        while self._wait(_TO_ANSWER) is None and time.monotonic() < end and (not heard or heard < len(self._lines)):
            heard = len(self._lines)
        return list(self._lines)[:_TOLD_LINES]

    def _read_stderr(self) -> bool:
        """Read what there is; return False at the end."""
        while True:
            try:
                data = os.read(self._stderr, _LONGEST_READ)
            except BlockingIOError:
                return True
            *lines, self._rest = (self._rest + data).split(b"\n")
            if self._rest and (not data or len(self._rest) > _LONGEST_READ):
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                text = line.decode(errors="replace")
                self._lines.append(text)
                log.info("worker %d: %s", self.rank, text)
            if not data:
                return False


def _end(process: subprocess.Popen[bytes], connection: socket.socket, stderr: int, parent: int) -> None:
    """What is left to do when the parent forgets a worker, or ends."""
    connection.close()
    os.close(stderr)
    if os.getpid() != parent:
        return  # a fork of the parent, whose worker it is not
    process.kill()
    try:
        process.wait(_TO_BE_KILLED)
    except subprocess.TimeoutExpired:
        log.error("process %d cannot be ended", process.pid)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (" (is there enough memory?)" if -code == signal.SIGKILL else "")
