"""Allocations: `allocate(layers, method, method_name) -> {layer: {"weights", "activations"}}` per module."""
