"""What is done to a layer before its weight is quantized, so that the product stays the same in exact arithmetic.

A transform module offers

    apply(weight, settings, statistics) -> (weight, input_factor)
    new_statistics(columns) -> object with observe(inputs)      only where the transform reads calibration data

The layer's input is multiplied by `input_factor` [columns] before it is quantized, and the weight by its inverse.
"""
