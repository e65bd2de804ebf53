"""`peg plugins new`: a package that builds, installs, is discovered and passes its conformance suite."""
