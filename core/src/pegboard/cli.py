"""The command `peg`. Sub-commands are imported when they are invoked; `peg --help` reads metadata alone."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from pegboard import __version__
from pegboard.errors import PegboardError, PluginError, nearest

if TYPE_CHECKING:
    from pegboard.plugins.index import Index

DEBUG_VARIABLE = "PEGBOARD_DEBUG"

BUILT_IN: Mapping[str, tuple[str, str]] = {
    "run": ("pegboard.commands.run:run", "Train: run a recipe with one of its configs."),
    "config": ("pegboard.commands.config:config", "List, show, check and copy the configs of recipes."),
    "plugins": ("pegboard.commands.plugins:plugins", "List, show and check plugins."),
    "doctor": ("pegboard.commands.doctor:doctor", "Say what is wrong with this installation and how to mend it."),
    "convert": ("pegboard.commands.convert:convert", "Write a model in another format."),
    "merge": ("pegboard.commands.merge:merge", "Write a self-contained model from an adapter and its base."),
}

OS_ERRORS: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free some space or write elsewhere, then run again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or write elsewhere, then run again"),
    errno.EFBIG: ("the file is larger than may be written here", "raise the limit (ulimit -f) or write elsewhere"),
    errno.EROFS: ("the file system is read-only", "write elsewhere"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "name another path"),
    errno.ELOOP: ("the link leads in a circle", "name another path, or mend the link"),
    errno.EACCES: ("permission denied", "check the permissions, or name another path"),
}
"""What the machine refuses, not we: errno -> what is wrong, and the fix."""


class LazyGroup(click.Group):
    """A group whose built-in commands are dotted paths and whose other commands are plugins of kind `command`.

    prefix: of the entry-point names that belong here; the rest of a name is a command, or with a further dot a group.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, prefix: str = "", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy, *self._offered(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name) or self._plugin_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        offered = self._offered(ctx)
        names = self.list_commands(ctx)
        width = max(20, formatter.width - 6 - max(map(len, names), default=0))
        rows = []
        for name in names:
            own = super().get_command(ctx, name)
            line = own.get_short_help_str(width) if own else self.lazy.get(name, ("", offered.get(name, "")))[1]
            rows.append((name, shorten(line, width, placeholder=" …")))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if not args[0].startswith("-") and args[0] not in known:
            raise self._no_command(ctx, args[0], known)
        return super().resolve_command(ctx, args)

    def _no_command(self, ctx: click.Context, name: str, known: list[str]) -> PegboardError:
        from pegboard.plugins.known import known_plugins
        from pegboard.plugins.load import mend

        full = self.prefix + name
        here = [r for r in _index(ctx).of_kind("command") if r.name == full or r.name.startswith(f"{full}.")]
        if here:
            return PluginError(f"{ctx.command_path} {name} is {here[0].status}: {here[0].reason}", fix=mend(here[0]))
        offered = known_plugins().get("command", {})
        dists = sorted({dist for other, dist in offered.items() if other == full or other.startswith(f"{full}.")})
        if dists:
            return PluginError(f"{ctx.command_path} has no command {name!r}", fix=f"pip install {' '.join(dists)}")
        return PegboardError(
            f"{ctx.command_path} has no command {name!r}{nearest(name, known)}",
            fix=f"use one of: {', '.join(known)}; further commands come with plugins",
        )

    def _offered(self, ctx: click.Context) -> dict[str, str]:
        """Return commands of plugins by name, with a line of help from metadata."""
        offered: dict[str, str] = {}
        for record in _index(ctx).of_kind("command"):
            if record.status == "blocked" or not record.name.startswith(self.prefix):
                continue
            name, dot, _ = record.name.removeprefix(self.prefix).partition(".")
            line = f"{record.summary or record.dist} [{record.status}]" if record.status != "ok" else record.summary
            offered[name] = f"Commands of {record.dist}." if dot else line
        return offered

    def _plugin_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from pegboard.plugins.load import Registry

        registry = Registry(_index(ctx))
        full = self.prefix + name
        names = [record.name for record in registry.records("command") if record.status != "blocked"]
        if full in names:
            command = registry.load("command", full)
            if not isinstance(command, click.Command):
                raise PluginError(
                    f"command {full!r} is a {type(command).__name__}, expected a click.Command", fix="tell its authors"
                )
            return command
        if any(other.startswith(f"{full}.") for other in names):
            return LazyGroup(name=name, prefix=f"{full}.")
        return None


def _index(ctx: click.Context) -> Index:
    """Return the one scan of this invocation."""
    from pegboard.plugins.index import scan

    index: Index | None = ctx.meta.get("pegboard.index")
    if index is None:
        index = ctx.meta["pegboard.index"] = scan()
    return index


@click.command(
    cls=LazyGroup,
    lazy=BUILT_IN,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"With {DEBUG_VARIABLE}=1 in the environment, an error shows its traceback.",
)
@click.version_option(__version__, prog_name="peg")
def peg() -> None:
    """Fine-tune and serve language models from plugins."""


class _LineFormatter(logging.Formatter):
    """Information as it is; anything above with its level in front."""

    def format(self, record: logging.LogRecord) -> str:
        line = record.getMessage()
        return line if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {line}"


def _log_to_stderr() -> None:
    logger = logging.getLogger("pegboard")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_LineFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def run_cli(args: list[str] | None = None) -> int:
    """Run `peg` with `args` and return its exit status: 0, 2 for a mistake of the user's, 130 after Ctrl-C.

    Any other exception is a defect and keeps its traceback.
    """
    _log_to_stderr()
    try:
        result = peg.main(args=args, prog_name="peg", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except PegboardError as error:
        _complain(str(error))
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader (head, say) has gone; without this the interpreter complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        _complain(
            f"out of memory{f': {first}' if first else ''}\n  fix: use a smaller batch, model or adapter, or a narrower dtype"
        )
        return 2
    except OSError as error:
        if error.errno is None or error.errno not in OS_ERRORS:
            raise
        wrong, fix = OS_ERRORS[error.errno]
        _complain(f"{f'{error.filename}: ' if error.filename else ''}{wrong}\n  fix: {fix}")
        return 2


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, torch's host allocator (a plain RuntimeError) or a device's one has no memory left."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error)
    )


def _complain(text: str) -> None:
    """Print an error, after the traceback of the exception in hand where the user asked for it."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)


def main() -> None:
    """Entry point of the script `peg`."""
    sys.exit(run_cli())
