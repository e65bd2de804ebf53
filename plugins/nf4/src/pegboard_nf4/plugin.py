"""Front door of the `nf4` quantizer."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="quantizer",
    target="pegboard_nf4.quantizer:Nf4Quantizer",
    schema="pegboard_nf4.options:Nf4Options",
    capabilities={"quant_methods": ["bitsandbytes"]},
)
