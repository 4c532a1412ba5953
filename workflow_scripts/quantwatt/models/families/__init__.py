"""Model families, by name: each module has a class `Family`, of what quantwatt.models.family says a family offers.

Beside the families, `pipelines`, `pipeline_family`, `recording` and `effects` have what those of diffusers pipelines do
alike.
"""

import functools
from typing import TYPE_CHECKING

from quantwatt import registry

if TYPE_CHECKING:  # it imports torch, which a job may import only once it has claimed its GPU
    from quantwatt.models.family import Family


@functools.cache
def load_family(name: str) -> "Family":
    """The family of a model entry's `family`."""
    return registry.load("families", name).Family()
