"""Sweeps: many runs of a recipe, compared."""
