"""Allocations: `allocate(layers, method, method_name, **found) -> {layer: {"weights", "activations"}}` per module.

`found` holds results of other jobs (see mixed.py); uniform takes none.
"""
