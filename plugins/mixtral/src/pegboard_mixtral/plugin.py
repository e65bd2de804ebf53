from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="pegboard_mixtral.family:Mixtral",
    interface=1,
    capabilities={"architectures": ["MixtralForCausalLM"], "model_types": ["mixtral"]},
)
