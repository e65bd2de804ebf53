"""Front door of the observer `otel`."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="hooks", target="pegboard_otel.observer:RequestTraces", schema="pegboard_otel.options:TraceOptions"
)
