"""Grammars by llguidance: which tokens may come next."""
