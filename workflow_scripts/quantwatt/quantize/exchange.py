"""Exchange layers as files with external solvers: libraries in separate environments, without the model.

Every layer is exported as its float weight and a small matrix of equivalent inputs. They have the same Σ x xᵀ as the
real inputs, and GPTQ reads only this sum. The libraries return codes, their grid, and the group of each column.

    exchange/MODEL/           LAYER.safetensors {weight [rows, columns] float32}
                              LAYER.inputs.safetensors {inputs [at most columns, columns] float32}, one file for all
                              layers with the same input tensor, manifest.json
    solved/SOLVER/MODEL/METHOD/   LAYER.safetensors {codes [rows, columns] uint8, scale [rows, groups] float32,
                              zero [rows, groups] uint8 where the format has one, g_idx [columns] int32}, manifest.json
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.jobs.progress import progress
from quantwatt.models.family import Family


@torch.no_grad()
def export_layers(
    denoiser: torch.nn.Module,
    family: Family,
    samples: Mapping[str, torch.Tensor],
    batch: int,
    folder: Path,
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Write every linear layer that the samples reach, with its inputs in the float model.

    Args:
        denoiser: float module on the CPU.
        samples: {denoiser input: [samples, ...]}.
        batch: samples per forward pass.
        device: where a block runs and its Σ x xᵀ is accumulated.
    Returns:
        {layer: {"weight", "inputs" (file names), "in_features", "out_features", "tokens"}}.
    Raises:
        DataError: a layer's inputs are not finite.
    """
    # Imported here, because the libraries' environments lack packages that streams.py imports.
    from quantwatt.quantize.streams import Block, BlockActivations

    streams, layers = BlockActivations(denoiser, family, samples, batch, device), {}
    linear = [n for n in family.quantizable(denoiser) if isinstance(denoiser.get_submodule(n), torch.nn.Linear)]
    bar = progress(total=len(streams.blocks), description="exporting layers", unit="block")
    while streams.block:
        block = Block(denoiser, streams.block, [name for name in linear if name not in layers], device)
        groups = {group[0]: group for group in streams.sharing(block.module, list(block.layers))}
        grams: dict[str, Any] = dict.fromkeys(groups, 0)
        tokens = dict.fromkeys(groups, 0)
        for kwargs in streams.batches if groups else ():
            real = family.real_tokens(kwargs)

            def observe(name, inputs, grams=grams, tokens=tokens, real=real):
                inputs = inputs.reshape(-1, inputs.shape[-1]).float()
                inputs = inputs if real is None else inputs[real.reshape(-1).to(inputs.device)]
                grams[name] = grams[name] + (inputs.T @ inputs).double()
                tokens[name] += len(inputs)

            streams.watch(block.module, list(groups), kwargs, observe)
        streams.advance(block.module)
        block.put_back()
        bar.update()
        for first, group in groups.items():
            owner = block.layers[first]
            if not grams[first].isfinite().all():
                raise DataError(f"{owner}: its inputs are not finite on the calibration data.")
            manifest.write_tensors(
                folder / f"{owner}.inputs.safetensors", {"inputs": equivalent_inputs(grams[first]).cpu()}
            )
            for name in (block.layers[member] for member in group):
                weight = denoiser.get_parameter(f"{name}.weight")
                files = {"weight": f"{name}.safetensors", "inputs": f"{owner}.inputs.safetensors"}
                manifest.write_tensors(folder / files["weight"], {"weight": weight.float()})
                shape = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
                layers[name] = {**files, **shape, "tokens": tokens[first]}
    bar.close()
    return layers


def equivalent_inputs(gram: torch.Tensor) -> torch.Tensor:
    """Return rows R [at most columns, columns] float32 with Rᵀ R = gram: Σ x xᵀ over these rows equals gram.

    Args:
        gram: Σ x xᵀ, [columns, columns].
    """
    gram = gram.double()
    rows, failed = torch.linalg.cholesky_ex(gram, upper=True)
    if failed:  # singular: fewer tokens than columns, or columns that depend on one another
        values, vectors = torch.linalg.eigh(gram)
        kept = values >= values[-1] * len(gram) * torch.finfo(torch.float64).eps
        rows = (vectors[:, kept] * values[kept].clamp(min=0).sqrt()).T
    rows[:, gram.diagonal() == 0] = 0  # exactly 0: solvers test for columns without inputs
    return rows.float()


def write_solved(
    path: str | Path,
    values: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    g_idx: torch.Tensor,
    symmetric: bool,
    bits: int,
) -> None:
    """Write a solved layer.

    Args:
        values: [rows, columns], the library's dequantized weight.
        scale, zero: [rows, groups], with value = (code - zero) * scale.
        g_idx: [columns], the group of each column.
        symmetric: whether zero is always 2**(bits-1) and therefore not stored.
    Raises:
        ValueError: the values do not lie on the grid.
    """
    group = g_idx.long()
    codes = torch.round(values / scale[:, group]) + zero[:, group]
    off_grid = ((codes - zero[:, group]) * scale[:, group] - values).abs() > 1e-3 * scale[:, group]
    if off_grid.any() or codes.amin() < 0 or codes.amax() > 2**bits - 1:
        raise ValueError(f"{path}: the weight does not lie on the {bits}-bit grid that the library returned")
    solved = {"codes": codes.to(torch.uint8), "scale": scale.float(), "g_idx": g_idx.to(torch.int32)}
    manifest.write_tensors(path, solved if symmetric else {**solved, "zero": zero.to(torch.uint8)})


def read(folder: str | Path, layer: str) -> QuantizedWeight:
    """Read the QuantizedWeight of a solved layer; `folder` contains manifest.json.

    Raises:
        DataError: the layer was not solved, or its file is missing, truncated or corrupted.
    """
    from safetensors.torch import load_file

    path, name = Path(folder) / "manifest.json", f"{layer}.safetensors"
    files = manifest.read_json(path)["files"]
    if name not in files:
        raise DataError(f"{path}: layer '{layer}' was not solved.")
    manifest.verify_files(path, {name: files[name]})
    solved = load_file(Path(folder) / name)
    consecutive = bool((solved["g_idx"].diff() >= 0).all())  # then the group is column // group size
    group_index = None if consecutive else solved["g_idx"]
    return QuantizedWeight(solved["codes"], solved["scale"], solved.get("zero"), group_index=group_index)
