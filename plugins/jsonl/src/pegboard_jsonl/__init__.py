"""Metrics of a run as one JSON object a line."""
