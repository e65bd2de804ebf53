"""Front door of the command `peg serve`."""

from pegboard.plugins.spec import PluginSpec

SERVE = PluginSpec(kind="command", target="pegboard_server.command:serve")
