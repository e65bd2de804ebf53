"""Metrics of a run as event files for TensorBoard."""
