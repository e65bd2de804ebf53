"""The commands of the engine. Torch is imported when one of them runs."""
