"""GGUF files, read as Hugging Face models."""
