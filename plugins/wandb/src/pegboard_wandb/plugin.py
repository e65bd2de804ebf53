"""Front door of the `wandb` logger."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="logger", target="pegboard_wandb.logger:WandbLogger", schema="pegboard_wandb.options:WandbOptions"
)
