"""Front door of the command `peg plugins new`."""

from pegboard.plugins.spec import PluginSpec

NEW = PluginSpec(kind="command", target="pegboard_sdk.scaffold.command:new")
