"""Front door of the `console` logger."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="logger", target="pegboard_console.logger:ConsoleLogger", schema="pegboard_console.options:ConsoleOptions"
)
