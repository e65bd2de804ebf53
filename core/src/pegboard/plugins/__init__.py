"""Finding, describing and loading plugins.

`groups` is the table of kinds, `spec` what a front door holds, `index` the one scan, `doors` the imports, `load` the
registry, `choose` automatic choices, `resolve` a choice as a JSON value, `hooks` the observers, and `check` the trial in
a child process.
"""
