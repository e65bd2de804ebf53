"""The interfaces that plugins implement: one kind a file, no logic."""
