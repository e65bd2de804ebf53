"""Front doors of the `lora` and `dora` adapters."""

from pegboard.plugins.spec import PluginSpec

LORA = PluginSpec(
    kind="adapter",
    target="pegboard_lora.adapter:LoraAdapter",
    schema="pegboard_lora.options:LoraOptions",
    # Its `open` reads the folders of both.
    capabilities={"markers": ["adapter_config.json"], "fused_groups": True},
)
DORA = PluginSpec(
    kind="adapter",
    target="pegboard_lora.adapter:DoraAdapter",
    schema="pegboard_lora.options:LoraOptions",
    capabilities={"fused_groups": False},
)
