"""Front door of the search `optuna`."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="search", target="pegboard_optuna.search:OptunaSearch")
