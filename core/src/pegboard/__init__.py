"""Pegboard: fine-tune and serve language models from plugins."""

__version__ = "0.1.0"
