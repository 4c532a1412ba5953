"""The random numbers that nobody hands a generator to."""

import contextlib
import hashlib
import random

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed):
    """Begin the global generators of torch (CPU and GPU), numpy and Python at a seed while inside; then put them back.

    They begin at a hash of the seed. At the seed itself begins the generator of the image of that seed: noise that is
    added later would be the image's first noise once more.
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
