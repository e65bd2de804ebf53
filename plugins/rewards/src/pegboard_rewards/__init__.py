"""Rewards that are computed from an answer: whether it is right, and whether it has the wanted form."""
