from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import torch

from pegboard_cpu_kernels import ops
from pegboard_cpu_kernels.threads import follow_torch


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_as_many_threads_as_torch(library: ctypes.CDLL) -> None:
    """In a process of its own: the number is torch's at the time of the call, not of the start."""
    out = run(
        "import torch; from pegboard_cpu_kernels.library import find; from pegboard_cpu_kernels.threads import follow_torch\n"
        "library = find().library; torch.set_num_threads(2); print(follow_torch(library))\n"
        "print(library.peg_threads_now()); torch.set_num_threads(3); print(library.peg_threads_now())\n"
    )
    followed, first, second = out.split()
    assert first == "2" and second == ("3" if followed == "True" else "2")


def test_sleeping_workers_wake_and_every_chunk_is_done_once(library: ctypes.CDLL) -> None:
    linear = ops.linear(library, lambda *a: None, most=1000)  # type: ignore[arg-type, return-value]
    x, weight = torch.ones(3, 64), torch.ones(2000, 64)
    before = library.peg_set_spin(ctypes.c_int64(0))
    library.peg_set_threads(4, None)
    try:
        for _ in range(200):
            assert (linear(x, weight) == 64).all()
    finally:
        library.peg_set_spin(ctypes.c_int64(before))
        library.peg_set_threads(1, None)


def test_calls_from_several_threads_at_once(library: ctypes.CDLL) -> None:
    linear = ops.linear(library, lambda *a: None, most=1000)  # type: ignore[arg-type, return-value]
    library.peg_set_threads(2, None)
    wrong: list[int] = []

    def work(value: int) -> None:
        x, weight = torch.full((2, 64), float(value)), torch.ones(1500, 64)
        for _ in range(100):
            if not (linear(x, weight) == 64 * value).all():
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    library.peg_set_threads(1, None)
    assert wrong == []


def test_a_forked_child_computes(library: ctypes.CDLL) -> None:
    out = run(
        "import os, torch; from pegboard_cpu_kernels.library import find; from pegboard_cpu_kernels import ops\n"
        "library = find().library; library.peg_set_threads(3, None)\n"
        "linear = ops.linear(library, None, most=1000); x, w = torch.ones(3, 64), torch.ones(2000, 64)\n"
        "assert (linear(x, w) == 64).all()\n"
        "pid = os.fork()\n"
        "ok = all(linear(x, w)[2, 1999].item() == 64.0 for _ in range(50))\n"
        "if pid == 0: os._exit(0 if ok else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), ok)\n"
    )
    assert out.split() == ["0", "True"]


def test_following_twice_changes_nothing(library: ctypes.CDLL) -> None:
    assert follow_torch(library) == follow_torch(library)
    library.peg_set_threads(1, None)
