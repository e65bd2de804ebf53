from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="pegboard_gemma.family:Gemma",
    interface=1,
    capabilities={
        "architectures": ["Gemma2ForCausalLM", "Gemma3ForCausalLM"],
        "model_types": ["gemma2", "gemma3_text"],
    },
)
