"""Reward models: a score for an answer, learned from pairs."""
