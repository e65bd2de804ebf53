from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="pegboard_llama.family:Llama",
    interface=1,
    capabilities={
        "architectures": ["LlamaForCausalLM", "MistralForCausalLM"],
        "model_types": ["llama", "mistral"],
    },
)
