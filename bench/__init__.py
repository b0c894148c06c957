"""Measurements of memfit that share no code with what they measure: `python -m bench.cells`."""
