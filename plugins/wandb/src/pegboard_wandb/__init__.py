"""A run in Weights & Biases."""
