"""Front doors of the commands `peg bench serve` and `peg bench train`."""

from pegboard.plugins.spec import PluginSpec

SERVE = PluginSpec(kind="command", target="pegboard_bench.command:serve")
TRAIN = PluginSpec(kind="command", target="pegboard_bench.train.command:train")
