"""A checkpoint that computes: layers over kernels, or the format's values where no kernel computes them here.

Enters: a checkpoint's folder. Leaves: a pipeline that generates, and which kernel computes how many of its layers.
Read first: checkpoint.py, linear.py, kernel_choice.py.
"""
