"""Test whether a library can compute a format on this device: store, restore and run a small layer."""

import functools
from importlib import metadata
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from quantwatt.formats.library import LibraryFormat


ROWS, COLUMNS, TOKENS = 128, 256, 32
WORST_ERROR = 0.6  # largest relative error; 2-bit weights have about a third, a wrong layout more than 1


def failure(weight_format: "LibraryFormat", device: str) -> str | None:
    """Return why a library cannot compute a format on a device.

    The first call takes seconds, to import the library and run the trial; the result is cached.

    Args:
        weight_format: a format of a library.
        device: "cpu" or "cuda".
    Returns:
        One sentence, or None if the library can compute it.
    """
    try:
        version = metadata.version(weight_format.LIBRARY)
    except metadata.PackageNotFoundError:
        return f"{weight_format.LIBRARY} is not installed."
    reason = _trial(weight_format, device)
    return reason and f"{weight_format.LIBRARY} {version} cannot compute {weight_format.name} on {device}: {reason}."


@functools.cache
def _trial(weight_format, device):
    """Return half a sentence with the library's error message, or None."""
    generator = torch.Generator().manual_seed(0)  # torch's global random numbers are not changed
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False, device="meta")
    weight = torch.randn(ROWS, COLUMNS, generator=generator).to(torch.bfloat16)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    inputs = torch.randn(TOKENS, COLUMNS, generator=generator).to(torch.bfloat16)
    try:
        with torch.no_grad():
            state = weight_format.state(weight_format.convert(linear, torch.bfloat16))
            layer = {"in_features": COLUMNS, "out_features": ROWS}
            restored = weight_format.restore(state, layer, None, torch.bfloat16, device)
            outputs = restored(inputs.to(device)).cpu().float()
    except Exception as error:  # noqa: BLE001  (a library may raise any type)
        cause = error.__cause__ or error
        return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")[:300]
    expected = inputs.float() @ weight.float().T
    error = ((outputs - expected).norm() / expected.norm()).item()
    return None if error < WORST_ERROR else f"its outputs are off by {error:.2g} of their size"
