"""Kind `command`: a sub-command of `peg`."""

from __future__ import annotations

from typing import Any, Protocol


class Command(Protocol):
    """A `click.Command`; the entry point's name is the sub-command's, and a dot in it makes a group.

    click's class is not imported here, so that the interface can be read without it.
    """

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return a line of help."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command in click's context. Raises PegboardError for a mistake of the user's."""
