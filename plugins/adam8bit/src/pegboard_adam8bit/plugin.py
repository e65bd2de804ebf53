"""Front door of the optimizer."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="optimizer",
    target="pegboard_adam8bit.optimizer:Adam8bitFactory",
    schema="pegboard_adam8bit.options:Adam8bitOptions",
)
