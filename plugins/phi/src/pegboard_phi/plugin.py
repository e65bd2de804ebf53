from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="pegboard_phi.family:Phi",
    interface=1,
    capabilities={"architectures": ["Phi3ForCausalLM"], "model_types": ["phi3"]},
)
