from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="model",
    target="pegboard_qwen.family:Qwen",
    interface=1,
    capabilities={
        "architectures": ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"],
        "model_types": ["qwen2", "qwen3", "qwen2_moe", "qwen3_moe"],
    },
)
