"""A pipeline as its library loads it, checked, drawn from by seeds and taken apart into blocks and layers.

Enters: a model's folder and its entry. Leaves: a pipeline, its denoiser, names of blocks and layers, recorded inputs.
Read first: family.py (what a family offers), families/sd3.py, architecture.py.
"""
