"""Weights as 4-bit normal floats."""
