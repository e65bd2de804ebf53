"""A run in MLflow."""
