"""How fast, beside what else one could use; each a program of its own: python -m benchmarks.NAME --help."""
