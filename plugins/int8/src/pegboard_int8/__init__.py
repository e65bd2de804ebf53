"""Weights as 8-bit integers with a scale for each output."""
