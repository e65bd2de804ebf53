"""Llama 2 and 3, SmolLM2 and Mistral."""
