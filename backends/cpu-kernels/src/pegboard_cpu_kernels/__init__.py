"""Compiled CPU kernels: a C library, and the functions that give it torch's tensors."""
