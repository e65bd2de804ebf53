"""A run shown in the terminal."""
