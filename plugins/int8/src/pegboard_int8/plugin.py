"""Front door of the `int8` quantizer."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="quantizer",
    target="pegboard_int8.quantizer:Int8Quantizer",
    schema="pegboard_int8.options:Int8Options",
)
