"""Quantize the weights of a float denoiser, layer by layer, with calibration data.

Input: a model, a calibration set, an allocation, a method. Output: quantized weights as stored in checkpoints, with
their errors. Read first: sequential.py (quantizes block after block), streams.py (inputs of the blocks),
solvers/gptq.py.
"""
