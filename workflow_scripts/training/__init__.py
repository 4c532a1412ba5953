"""Training of the embedded models: one module for each model, and one for the training loop that they share."""

from quantwatt.jobs import torchvision_ops  # noqa: F401  (before diffusers, transformers and open_clip)
