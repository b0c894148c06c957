"""Makes a new archive of an uploaded model, of what is known to be harmless and nothing else. Torch is not imported.

`torch.export.load` runs what is in a file in many ways: example inputs, weights and constants may be pickles; sizes are Python for
sympy; guards are compiled; names become source text; trees name modules to import. No uploaded byte reaches it: `rewrite` reads an
upload member by member against a list of what may be there, and writes a new archive from what it understood.
"""
