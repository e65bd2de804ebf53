"""Muon: momentum whose matrices are made orthogonal."""
