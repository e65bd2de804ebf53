"""Front door of the `fp8` quantizer."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="quantizer",
    target="pegboard_fp8.quantizer:Fp8Quantizer",
    schema="pegboard_fp8.options:Fp8Options",
    capabilities={"quant_methods": ["fp8"]},
)
