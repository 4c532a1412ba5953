"""Seed the global random number generators, for code that takes no generator."""

import contextlib
import hashlib
import random
from collections.abc import Generator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed the global generators of torch (CPU and GPU), numpy and Python; restore their states at the end.

    They are seeded with a hash of the seed. The image's own generator uses the seed itself: with the same seed, noise
    that a scheduler adds later would repeat the image's initial noise.
    """
    seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4])  # numpy takes 32 bits
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
