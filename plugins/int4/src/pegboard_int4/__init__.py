"""Weights as 4-bit integers in groups, inputs as 8-bit integers."""
