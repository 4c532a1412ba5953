"""Weight formats: a grid of values, and codes packed to the format's number of bits.

Input: the settings of a format, and a weight. Output: packed codes and their grid.
Read first: weight_format.py (the interface of a format), quantized_weight.py, integer.py.
"""
