"""Intel GPUs as a platform."""
