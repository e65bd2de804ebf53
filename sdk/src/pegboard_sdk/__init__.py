"""For authors of plugins: conformance suites, pytest fixtures, and the templates of `peg plugins new`."""
