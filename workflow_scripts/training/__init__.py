"""How the embedded models are trained: one module for each model, one for the loop they share."""

from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers, transformers and open_clip)
