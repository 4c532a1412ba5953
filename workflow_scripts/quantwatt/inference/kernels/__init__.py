"""Kernels: layers that compute in a format.

A kernel is a module with

    NAME       what computes
    PACKAGE    that provides it
    BOUND      largest norm of the difference between its outputs and the dequantized layer's, relative to the latter
    refusal(layer, device) -> why it cannot take a layer, half a sentence, or None
    Layer      subclass of quantwatt.inference.linear.QuantizedLinear

where a layer is {"weights", "activations", "in_features", "out_features", "parts"} of a checkpoint's manifest, of a
convolution also its geometry. What a kernel takes by its own word it must still prove (quantwatt.inference.probe).
"""
