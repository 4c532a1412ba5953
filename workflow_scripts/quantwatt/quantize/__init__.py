"""From a float denoiser and calibration data to a quantized weight for every layer.

Enters: a model, calibration tensors, an allocation, a method. Leaves: weights with their errors, as checkpoints hold
them. Read first: sequential.py (block after block), streams.py (their inputs), solvers/gptq.py.
"""
