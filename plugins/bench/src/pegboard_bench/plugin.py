"""Front door of the command `peg bench serve`."""

from pegboard.plugins.spec import PluginSpec

SERVE = PluginSpec(kind="command", target="pegboard_bench.command:serve")
