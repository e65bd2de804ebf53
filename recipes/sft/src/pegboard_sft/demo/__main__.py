"""python -m pegboard_sft.demo --model FILE.gguf: tune a real model on a small skill and show what it learned."""

from __future__ import annotations

import argparse
import sys

from pegboard.errors import PegboardError
from pegboard_sft.demo.tour import TOKENS, tour


def main(args: list[str] | None = None) -> int:
    """Return an exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m pegboard_sft.demo", description=__doc__.partition(": ")[2])
    parser.add_argument("--model", required=True, help="the model to tune: a GGUF file, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens to train on (default: %(default)s)")
    given = parser.parse_args(args)
    if given.tokens < 1:
        parser.error(f"--tokens is {given.tokens}, expected at least 1")
    try:
        tour(given.model, given.tokens)
    except PegboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
