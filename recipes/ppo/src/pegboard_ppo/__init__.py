"""Proximal policy optimisation: a value model says what to expect, and answers that exceed it become more likely."""
