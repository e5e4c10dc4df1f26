"""Formulas: numbers in, numbers out, scalars and arrays alike; NumPy only."""
