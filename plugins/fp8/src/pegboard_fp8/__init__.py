"""Weights as 8-bit floats (e4m3) with a scale for each block."""
