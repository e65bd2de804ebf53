from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="attention", target="fake_attention.loops:Loops")
