"""Sub-commands of `peg` that belong to the core, one a module, imported when invoked."""
