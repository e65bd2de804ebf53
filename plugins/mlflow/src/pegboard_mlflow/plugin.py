"""Front door of the `mlflow` logger."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="logger", target="pegboard_mlflow.logger:MlflowLogger", schema="pegboard_mlflow.options:MlflowOptions"
)
