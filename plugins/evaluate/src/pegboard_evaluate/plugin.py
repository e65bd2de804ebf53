"""Front door of the command `peg eval`."""

from pegboard.plugins.spec import PluginSpec

EVAL = PluginSpec(kind="command", target="pegboard_evaluate.command:evaluate")
