"""Hostile input for what reads files, and for the HTTP server: `python -m pegboard_sdk.fuzz --inputs N | --seconds S`.

An input follows from its target and seed alone. A finding is whatever a reader raises beside a PegboardError, a reader that does not
come to an end, one that takes much more memory than the input is large, and a process that dies.
"""
