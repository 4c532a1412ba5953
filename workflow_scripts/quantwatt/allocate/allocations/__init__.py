"""Allocations: `allocate(layers, method, method_name, **found) -> {layer: {"weights", "activations"}}` per module.

`found` is what other jobs have found out for it (mixed.py); uniform takes nothing.
"""
