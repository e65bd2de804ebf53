from __future__ import annotations

from pegboard_gemma.plugin import SPEC
from pegboard_sdk.conformance import ModelSuite

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
    "sliding_window": 5,
    "max_position_embeddings": 64,
}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **SIZES}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **SIZES, "sliding_window_pattern": 2}
CONFIGS = {
    "gemma2": GEMMA2,
    "gemma2-low-caps": {**GEMMA2, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    "gemma2-untied": {**GEMMA2, "tie_word_embeddings": False, "attention_bias": True},
    "gemma3": GEMMA3,
    "gemma3-scaled": {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
}


class TestGemma(ModelSuite):
    spec = SPEC
    configs = CONFIGS
