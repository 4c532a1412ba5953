"""Rotate an attention's values in its projections, so that its outputs come out rotated at no cost (arXiv 2404.00456).

Attention mixes the values of tokens head by head, by weights that depend on queries and keys alone. So a rotation of
each head's values may be folded into the projections to values, and its inverse into the projections of the outputs.
"""

from dataclasses import dataclass

import torch

from quantwatt.formats import rotation

VALUES, OUTPUTS = ("to_v", "add_v_proj"), ("to_out.0", "to_add_out")  # names in diffusers' attention modules
BETWEEN = ("norm_v", "norm_added_v", "group_norm_v")  # what would stand between values and outputs


@dataclass(frozen=True)
class Group:
    """Projections of one attention: names of layers, and the width of a head."""

    values: list[str]
    outputs: list[str]
    width: int


def groups(denoiser: torch.nn.Module) -> list[Group]:
    """The attentions of a denoiser whose values can be rotated: diffusers' modules with projections of their own."""
    found = []
    for name, module in denoiser.named_modules():
        heads = getattr(module, "heads", None)
        if not isinstance(heads, int) or any(getattr(module, part, None) is not None for part in BETWEEN):
            continue
        values, outputs = ([part for part in parts if _is_linear(module, part)] for parts in (VALUES, OUTPUTS))
        widths = {module.get_submodule(part).in_features for part in outputs}
        if values and len(widths) == 1 and (width := widths.pop()) % heads == 0:
            rows = {module.get_submodule(part).out_features % (width // heads) for part in values}
            if rows == {0}:  # as many values as outputs, or fewer heads of them
                found.append(Group([f"{name}.{v}" for v in values], [f"{name}.{o}" for o in outputs], width // heads))
    return found


def _is_linear(module, part):
    try:
        return isinstance(module.get_submodule(part), torch.nn.Linear)
    except AttributeError:
        return False


@torch.no_grad()
def fold(denoiser: torch.nn.Module, layers: set[str], largest: int, signs: bool, seed: int) -> dict[str, int]:
    """Rotate the values of the attentions whose output projections are among `layers`, in place.

    The denoiser computes the same as before, up to its type's rounding of the rotated weights.

    Args:
        layers: names of layers that are to get rotated inputs.
        largest: largest block of the rotation, which is at most as wide as a head.
        signs, seed: random signs before the rotation, equal for all heads.
    Returns:
        {output projection: block}, also of those of a rotated attention that are not among `layers`.
    """
    rotated = {}
    for group in groups(denoiser):
        block = rotation.block_of(group.width, largest)
        if block is None or not layers.intersection(group.outputs):
            continue
        sign = rotation.random_signs(group.width, seed) if signs else torch.ones(group.width)
        for name in group.values:
            weight = denoiser.get_parameter(f"{name}.weight")
            weight.copy_(_rows(weight, block, sign))
            if denoiser.get_submodule(name).bias is not None:
                bias = denoiser.get_parameter(f"{name}.bias")
                bias.copy_(_rows(bias[:, None], block, sign)[:, 0])
        for name in group.outputs:
            weight = denoiser.get_parameter(f"{name}.weight")
            weight.copy_(_rows(weight.T, block, sign).T)  # H and the signs are their own inverses
            rotated[name] = block
    return rotated


def _rows(weight, block, sign):
    """Multiply [rows, columns] by the rotation of each head from the left, as float32."""
    signs = sign.to(weight.device).repeat(len(weight) // len(sign))
    return rotation.walsh_hadamard(weight.float().T * signs, block).T
