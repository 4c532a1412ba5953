"""Load a checkpoint and compute with it: layers over kernels, or simulated layers where this device has no kernel.

Input: a checkpoint's folder. Output: a pipeline that generates, and how many layers each kernel computes.
Read first: checkpoint.py, linear.py, kernel_choice.py.
"""
