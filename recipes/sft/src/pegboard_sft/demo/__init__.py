"""A small model learns to run a house: data, and a tour from the untuned to the tuned model."""
