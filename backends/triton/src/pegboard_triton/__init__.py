"""Kernels in Triton that several kinds of GPU share."""
