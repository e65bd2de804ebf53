"""Training data from the Hugging Face Hub."""
