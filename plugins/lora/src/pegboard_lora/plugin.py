"""Front doors of the `lora` and `dora` adapters."""

from pegboard.plugins.spec import PluginSpec

LORA = PluginSpec(
    kind="adapter",
    target="pegboard_lora.adapter:LoraAdapter",
    schema="pegboard_lora.options:LoraOptions",
    capabilities={"peft_types": ["LORA"], "fused_groups": True},
)
DORA = PluginSpec(
    kind="adapter",
    target="pegboard_lora.adapter:DoraAdapter",
    schema="pegboard_lora.options:LoraOptions",
    capabilities={"peft_types": ["LORA"], "fused_groups": False},
)
