"""Load a model's pipeline, check it, generate from seeds, and list its blocks and layers.

Input: a model's folder and its entry. Output: a pipeline, its denoiser, names of blocks and layers, recorded inputs.
Read first: family.py (the interface of a family), families/sd3.py, architecture.py.
"""
