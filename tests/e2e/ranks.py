"""One process of a group, which waits for orders: each line of its input names a folder and what `peg` does there, in turn.

It answers each order with a line: the exit status of the first run that failed, or 0.
"""

from __future__ import annotations

import json
import os
import sys

import torch.distributed as dist

from pegboard.cli import run_cli


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print is no answer
    dist.init_process_group("gloo")
    for line in sys.stdin:
        order = json.loads(line)
        os.chdir(order["folder"])
        status = 0
        for arguments in order["runs"]:
            status = status or run_cli(arguments)
        print(json.dumps(status), file=answers, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
