"""The command `peg`. Sub-commands are imported when they are invoked; `peg --help` reads metadata alone."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from pegboard import __version__
from pegboard.errors import PegboardError, PluginError

BUILT_IN: Mapping[str, tuple[str, str]] = {
    "run": ("pegboard.commands.run:run", "Train: run a recipe with one of its configs."),
    "config": ("pegboard.commands.config:config", "List, show, check and copy the configs of recipes."),
    "plugins": ("pegboard.commands.plugins:plugins", "List, show and check plugins."),
    "doctor": ("pegboard.commands.doctor:doctor", "Say what is wrong with this installation and how to mend it."),
    "convert": ("pegboard.commands.convert:convert", "Write a model in another format."),
}


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
        return sorted({*super().list_commands(ctx), *self.lazy, *self._offered()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name) or self._plugin_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        offered = self._offered()
        rows = []
        for name in self.list_commands(ctx):
            own = super().get_command(ctx, name)
            rows.append(
                (name, own.get_short_help_str(120) if own else self.lazy.get(name, ("", offered.get(name, "")))[1])
            )
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            from pegboard.errors import nearest

            known = self.list_commands(ctx)
            raise PegboardError(
                f"{ctx.command_path} has no command {name!r}{nearest(name, known)}",
                fix=f"use one of: {', '.join(known)}; further commands come with plugins",
            )
        return super().resolve_command(ctx, args)

    def _offered(self) -> dict[str, str]:
        """Return commands of plugins by name, with a line of help from metadata."""
        from pegboard.plugins.index import scan

        offered: dict[str, str] = {}
        for record in scan().of_kind("command"):
            if record.status == "blocked" or not record.name.startswith(self.prefix):
                continue
            name, dot, _ = record.name.removeprefix(self.prefix).partition(".")
            line = f"{record.summary or record.dist} [{record.status}]" if record.status != "ok" else record.summary
            offered[name] = f"Commands of {record.dist}." if dot else line
        return offered

    def _plugin_command(self, name: str) -> click.Command | None:
        from pegboard.plugins.load import Registry

        registry = Registry.discover()
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


@click.command(cls=LazyGroup, lazy=BUILT_IN, context_settings={"help_option_names": ["-h", "--help"]})
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
    """Run `peg` with `args` and return its exit status: 0, 2 for a mistake of the user's, 130 after Ctrl-C."""
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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _complain(
            f"the disk is full: {error.filename or error}\n  fix: free some space or write elsewhere, then run again"
        )
        return 2


def _complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def main() -> None:
    """Entry point of the script `peg`."""
    sys.exit(run_cli())
