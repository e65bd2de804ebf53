"""Front door of the command `peg plot`."""

from pegboard.plugins.spec import PluginSpec

PLOT = PluginSpec(kind="command", target="pegboard_plot.command:plot")
