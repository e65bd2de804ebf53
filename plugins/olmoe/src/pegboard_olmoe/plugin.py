from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="pegboard_olmoe.family:Olmoe",
    interface=1,
    capabilities={"architectures": ["OlmoeForCausalLM"], "model_types": ["olmoe"]},
)
