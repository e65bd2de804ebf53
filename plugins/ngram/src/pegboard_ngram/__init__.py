"""Guesses at the next tokens by looking up what came after the last ones before."""
