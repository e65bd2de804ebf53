from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="fake_family.side_by_side:SideBySide",
    capabilities={"architectures": ["SideBySideForCausalLM"], "model_types": ["side_by_side"]},
)
