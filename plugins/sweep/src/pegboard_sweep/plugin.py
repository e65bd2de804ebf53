"""Front doors of the command `peg sweep` and of its searches."""

from pegboard.plugins.spec import PluginSpec

SWEEP = PluginSpec(kind="command", target="pegboard_sweep.command:sweep")
GRID = PluginSpec(kind="search", target="pegboard_sweep.searches:Grid")
RANDOM = PluginSpec(kind="search", target="pegboard_sweep.searches:Random")
