"""Front door of the `tensorboard` logger."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="logger", target="pegboard_tensorboard.logger:TensorBoardLogger")
