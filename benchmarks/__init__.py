"""Benchmarks: the layers against a plain port of the paper's formula, the GPU, the store."""
