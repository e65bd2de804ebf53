"""Names of the files that make a model. Standard library only: `peg download` needs no torch to fail."""

from __future__ import annotations

CONFIG, GENERATION = "config.json", "generation_config.json"
INDEX = "model.safetensors.index.json"
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "*.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Patterns of the small files that travel with a model; a star matches slashes too."""
WANTED = (CONFIG, GENERATION, "adapter_config.json", "*.safetensors", INDEX, *COMPANIONS)
"""What is fetched of a model's repository."""
UNWANTED = ("*/*.safetensors", "consolidated*.safetensors")
"""Copies of the weights in other layouts."""
