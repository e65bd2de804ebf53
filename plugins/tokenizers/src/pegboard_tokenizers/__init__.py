"""Tokenizers in Hugging Face files: ids, text as it streams, chat templates and masks of what to learn."""
