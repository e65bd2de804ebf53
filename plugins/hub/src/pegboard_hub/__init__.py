"""Models in Hugging Face folders and on the hub."""
