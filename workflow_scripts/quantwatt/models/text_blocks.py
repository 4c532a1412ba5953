"""How the blocks of a text model are taken apart."""

import re

import torch


def block_names(layers, prefix):
    """Names of the members of a module list, in execution order."""
    return [f"{prefix}.{i}" for i in range(len(layers))]


def linear_layers(model, prefix):
    """Names of the linear layers inside the blocks; embeddings, norms and heads keep the model's type."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(f"{prefix}.")
    ]


def in_stages(names, patterns):
    """Layers of one block in groups of which each reads what those before it have computed.

    Args:
        names: quantizable layers of the block.
        patterns: regular expressions of the ends of names, one a stage.
    Raises:
        ValueError: a layer that no stage knows.
    """
    found = [[name for name in names if re.search(rf"(^|\.){pattern}$", name)] for pattern in patterns]
    if unknown := set(names).difference(*found):
        raise ValueError(f"{min(unknown)}: of no stage of a block")
    return [stage for stage in found if stage]
