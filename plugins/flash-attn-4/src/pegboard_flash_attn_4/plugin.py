from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="attention",
    target="pegboard_flash_attn_4.backend:FlashAttn4Attention",
    probe="pegboard_flash_attn_4.probe:probe",
)
