"""Record what the hqq package makes of some weights: run once with version 0.2.6 installed and once with 0.2.8.post1.

The first multiplies β by 1.01 in each iteration, as HQQ's authors describe it; the second leaves it as it is.
"""

from importlib import metadata
from pathlib import Path

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import load_file, save_file

RECORDING = Path(__file__).parent / "hqq.safetensors"
BITS = (2, 3, 4, 8)
GROUP_SIZE = 64


def weights():
    """A usual layer; heavy tails, where outliers are left out; a shifted one, whose groups do not hold 0."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(3, 32, 192, generator=generator)
    chi = torch.randn(3, 32, 192, generator=generator).square().mean(dim=0)
    return {"normal": 0.02 * normal[0], "tails": 0.5 * normal[1] / chi.sqrt(), "shifted": 3 + 0.3 * normal[2]}


def main():
    torch.set_num_threads(1)
    version = metadata.version("hqq")
    recorded = load_file(RECORDING) if RECORDING.exists() else {}
    for name, weight in weights().items():
        recorded[f"{name}.weight"] = weight
        for bits in BITS:
            codes, grid = Quantizer.quantize(
                weight, nbits=bits, group_size=GROUP_SIZE, axis=1, optimize=True, device="cpu", bitpack=False
            )
            groups = (len(weight), -1)
            recorded[f"{version}.{name}.{bits}.codes"] = codes.to(torch.uint8).reshape(weight.shape)
            recorded[f"{version}.{name}.{bits}.scale"] = grid["scale"].float().reshape(groups).contiguous()
            recorded[f"{version}.{name}.{bits}.zero"] = grid["zero"].float().reshape(groups).contiguous()
    save_file(recorded, RECORDING, metadata={"torch": torch.__version__, "group_size": str(GROUP_SIZE)})


if __name__ == "__main__":
    main()
