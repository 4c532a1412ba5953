"""Model families, by name: each module has a class `Family`, of what quantwatt.models.family says a family offers.

Beside the families, `pipelines`, `pipeline_family`, `recording` and `effects` have what those of diffusers pipelines do
alike.
"""

import functools

from quantwatt import registry

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # of one value of a model's dtype


@functools.cache
def load_family(name):
    """The family of a model entry's `family`: quantwatt.models.family.ImageFamily or TextFamily."""
    return registry.load("families", name).Family()
