from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="attention", target="pegboard_sdpa.backend:SdpaAttention")
