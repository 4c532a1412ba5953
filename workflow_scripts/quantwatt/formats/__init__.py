"""How weights are stored: a grid of values, and a packing to the format's true bits.

Enters: settings of a format, a weight. Leaves: codes and their grid, packed.
Read first: weight_format.py (what a format offers), quantized_weight.py, integer.py.
"""
