"""Compilation ahead of a first launch, with a driver that has no device: what is compiled, how often, and who waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = '''
import json, sys, threading
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

interval = sys.getswitchinterval()
launches, loads = [], []
class Utils:
    def load_binary(self, name, kernel, shared, device):
        loads.append((name, threading.current_thread().name.split("_")[0]))
        return 1, 1, 32, 0, 1024
    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}
class Driver:
    """What Triton asks of a driver, for a card that is not there."""
    utils = Utils()
    def launcher_cls(self, source, metadata):
        return lambda *arguments: launches.append(metadata.name)
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0
driver.set_active(Driver())

import pegboard_engine.ops
from pegboard_triton import kernel, tokens
compiled = []
def counted(*, fn, **others):
    compiled.append(fn.name)
triton.knobs.runtime.jit_post_compile_hook = counted

def ids(count):
    return torch.zeros(count, dtype=torch.int64)

def work():
    for count in (1, 3, 5, 16, 32):
        tokens.known_ids(ids(count), ids(9), ids(count))

tokens.INTERPRETED = True  # the host is taken for a device
rehearsal = kernel.Rehearsal(torch.device("cpu")).begin(work)
rehearsal.watched()
noted, before = len(rehearsal.noted), list(launches)
work()
kernel.settle()
ahead = list(compiled)
tokens.known_ids(ids(64), ids(9), ids(64))
seen = threading.Event()
def raising():
    seen.set()
    raise ValueError("no")
kernel.Rehearsal(torch.device("cpu")).begin(raising).watched()
for thread in threading.enumerate():
    if thread.name == "rehearsal":
        thread.join()
print(json.dumps({
    "noted": noted, "launched while noting": before, "launches": len(launches), "compiled": len(ahead),
    "compiled later": len(compiled) - len(ahead), "threads": sorted({thread for _, thread in loads}),
    "pending": len(tokens.fill_in.pending), "raised": seen.is_set(), "interval": sys.getswitchinterval() == interval,
}))
'''


def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # Kernels are compiled apart for a count of 1, for those that 16 divides, and for others.
    assert told["noted"] == told["compiled"] == 3
    assert told["launched while noting"] == []
    assert told["launches"] == 6
    assert told["compiled later"] == 0
    assert told["threads"] == ["kernels"]
    assert told["pending"] == 0
    assert told["raised"]
    assert told["interval"]
