"""Everything a developer does here, with Python 3.11 or newer and pip alone: `python dev.py` lists the commands."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "error: Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": try `make PYTHON=python3.12 ...`"
    )

import argparse
from collections.abc import Sequence
from pathlib import Path

from devtools import tasks
from devtools.workspace import DevError, Workspace

PASSES_ON = ("demo", "test", "test-slow", "types", "new-plugin", "fuzz")
"""Commands whose unknown arguments go to the tool behind them."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="dev.py", description="Everything a developer does here.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: object, epilog: str = "") -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").splitlines()[0]
        added = commands.add_parser(name, help=summary, description=summary, epilog=epilog, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    setup = command("setup", tasks.setup, "PEGBOARD_TORCH=2.11.0 in the environment installs another torch.")
    setup.add_argument("--force", action="store_true", help="install even though nothing changed")
    setup.add_argument("--peers", action="store_true", help="set up .venv-peers too")
    command("demo", tasks.demo, "Further arguments go to the demo.")
    command("test", tasks.test, "Further arguments go to pytest; without them it runs everything that is fast.")
    slow = command("test-slow", tasks.test_slow, "Further arguments go to pytest.")
    slow.add_argument("--only", metavar="STAGE,...", help="of: wheels, slow, peers, demo, fuzz")
    lint = command("lint", tasks.lint)
    lint.add_argument("--fix", action="store_true", help="mend and format the files")
    command("types", tasks.types, "Further arguments go to mypy.")
    command("wheels", tasks.build_wheels)
    command("smoke", tasks.smoke)
    new = command("new-plugin", tasks.new_plugin, "Further arguments go to `peg plugins new`.")
    new.add_argument("name", help="the plugin's short name")
    new.add_argument("--kind", required=True, help="what it is, such as model, objective or logger")
    command("fuzz", tasks.fuzz, "Arguments: --seconds S or --inputs N.")
    command("known", tasks.known)
    clean = command("clean", tasks.clean)
    clean.add_argument("--all", action="store_true", help="remove .venv and .venv-peers too")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 for a mistake, told in a few lines."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    if args.command is None:
        top.print_help()
        return 0
    if rest and args.command not in PASSES_ON:
        top.error(f"{args.command} does not take {' '.join(rest)}")
    args.rest = rest[1:] if rest[:1] == ["--"] else rest
    try:
        return args.run(Workspace.read(Path(__file__).resolve().parent), args)
    except DevError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
