"""Front doors of the quantizers `int4` and `int4_qat`."""

from pegboard.plugins.spec import PluginSpec

INT4 = PluginSpec(
    kind="quantizer",
    target="pegboard_int4.quantizer:Int4Quantizer",
    schema="pegboard_int4.options:Int4Options",
    capabilities={"quant_methods": ["compressed-tensors"]},
)
QAT = PluginSpec(
    kind="quantizer",
    target="pegboard_int4.quantizer:Int4TrainingQuantizer",
    schema="pegboard_int4.options:Int4TrainingOptions",
)
