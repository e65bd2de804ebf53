"""Finding, describing and loading plugins."""
