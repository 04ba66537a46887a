"""Benchmarks. Each proves that what it times is right, and prints a fraction of what the machine could do."""
