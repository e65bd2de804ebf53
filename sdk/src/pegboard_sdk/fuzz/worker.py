"""The process that reads hostile input: `python -m pegboard_sdk.fuzz.worker TARGET FOLDER FIRST STEP`.

It writes the seed that it is about to read into `FOLDER/seed`, so that whoever started it knows it when the process dies, and answers
with a line of JSON for every finding and, at the end or when told to stop, for its counts.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from pegboard.errors import PegboardError
from pegboard.plugins.load import Registry
from pegboard_sdk.fuzz.targets import Target, target_of

SECONDS_EACH = 10.0
"""An input that takes longer is a finding; an ordinary one takes about a millisecond."""
MEMORY = 512 << 20
"""Bytes that reading may take beyond what the process had before."""


class Hang(BaseException):
    """An input took too long. Not an Exception, so that no reader can take it for one of its own."""


def limit_memory(extra: int) -> None:
    """Let the process have at most `extra` more bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def complaint(target: Target, path: Path, seed: int) -> tuple[str, str]:
    """Return ("accepted" or "refused", "") for an input that is read as it should be, else ("finding", what happened)."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
    try:
        target.read(path, seed)
        return "accepted", ""
    except PegboardError:
        return "refused", ""
    except Hang:
        return "finding", f"not read within {SECONDS_EACH:g} s"
    except Exception:
        return "finding", "".join(traceback.format_exc(limit=-4)).strip()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(name: str, folder: str, first: int, last: int, step: int, deadline: float) -> None:
    """Read the inputs first, first + step … below `last`, until `deadline` (seconds of `time.time`)."""
    target = target_of(name)(Registry.discover())
    target.prepare()
    where = Path(folder)
    path = where / target.file
    # What is imported while reading counts as before: read a valid input once.
    path.write_bytes(target.make(0))
    complaint(target, path, 0)
    limit_memory(MEMORY)
    counts = {"accepted": 0, "refused": 0, "finding": 0}
    with (where / "seed").open("r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        for seed in range(first, last, step):
            if time.time() >= deadline:
                break
            place[:] = seed.to_bytes(8, "little")
            path.write_bytes(target.make(seed))
            # A loop in compiled code never comes back to Python to hear of the alarm.
            faulthandler.dump_traceback_later(3 * SECONDS_EACH, exit=True)
            verdict, told = complaint(target, path, seed)
            faulthandler.cancel_dump_traceback_later()
            counts[verdict] += 1
            if verdict == "finding":
                _tell({"seed": seed, "told": told})
    target.close()
    _tell({"counts": counts})


def _tell(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))
