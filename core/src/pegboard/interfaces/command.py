"""Kind `command`: a sub-command of `peg`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

type_doc = "The target of a command plugin is a click command object; its entry-point name is the sub-command's name."
Command = "click.Command"
