"""Model families by name: each module has a class `Family` with the interface of quantwatt.models.family.

The modules `pipelines`, `pipeline_classes`, `pipeline_family`, `recording` and `effects` are no families: they hold the
code that families of diffusers pipelines share.
"""

import functools
from typing import TYPE_CHECKING

from quantwatt import registry
from quantwatt.jobs import lean_imports

if TYPE_CHECKING:  # the module imports torch, which a job may import only after it has claimed its GPU
    from quantwatt.models.family import Family


@functools.cache
def load_family(name: str) -> "Family":
    """The family of a model entry's `family`."""
    family = registry.load("families", name).Family()
    lean_imports.load(*family.LIBRARIES)
    return family
