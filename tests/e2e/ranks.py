"""One process of a group: `python ranks.py '[[ARGUMENTS], …]'` runs `peg` with each list of arguments in turn, among the others."""

from __future__ import annotations

import json
import sys

import torch.distributed as dist

from pegboard.cli import run_cli


def main(runs: list[list[str]]) -> int:
    dist.init_process_group("gloo")
    status = 0
    for arguments in runs:
        status = run_cli(arguments)
        if status:
            break
    dist.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
