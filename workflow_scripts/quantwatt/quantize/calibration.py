"""Record the calibration set: denoiser inputs on the float trajectory, stored instead of layer activations."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from quantwatt.artifacts import manifest
from quantwatt.jobs.progress import progress
from quantwatt.models import component_inputs, denoiser_inputs
from quantwatt.models.family import ImageFamily, TextFamily
from quantwatt.models.sampling import Calibration, Reading

if TYPE_CHECKING:
    import torch

    from quantwatt.models.components import Component


def strata(steps: int, timesteps: int) -> list[int]:
    """Return the middle step of each of `timesteps` equal parts of a trajectory of `steps` steps."""
    count = min(steps, timesteps)
    return [int((i + 0.5) * steps / count) for i in range(count)]


def strata_of_prompt(index: int, chosen: Sequence[int], per_prompt: int) -> list[int]:
    """Return the steps to record for a prompt: `per_prompt` of the chosen steps, evenly spread, rotating by prompt."""
    count = min(per_prompt, len(chosen))
    return sorted({chosen[(index + k * len(chosen) // count) % len(chosen)] for k in range(count)})


def record(
    family: ImageFamily, pipeline: Any, prompts: Sequence[str], calibration: Calibration
) -> "tuple[dict[str, torch.Tensor], list[dict[str, Any]]]":
    """Run the float pipeline and record its denoiser inputs.

    Args:
        prompts: one string per sample of the prompt file.
    Returns:
        {input name: [samples, ...]}, and per sample {"prompt", "seed", "step", "timestep", "branch"}; "timestep" is
        the scheduler's value.
    Raises:
        DataError: samples have different shapes, or cannot be batched into one denoiser call.
    """
    chosen = strata(calibration.steps, calibration.timesteps)
    kept, rows = [], []
    for first in progress(range(0, len(prompts), calibration.batch_size), description="calibrating", unit="batch"):
        batch = prompts[first : first + calibration.batch_size]
        seeds = [calibration.seed + first + i for i in range(len(batch))]
        recorded = family.record(pipeline, batch, seeds, calibration, set(chosen))
        for i in range(len(batch)):
            for step in strata_of_prompt(first + i, chosen, calibration.timesteps_per_prompt):
                inputs = recorded[step]
                branches = len(next(iter(inputs.values()))) // len(batch)  # 2 with guidance
                for branch in range(branches):
                    kept.append(denoiser_inputs.of_sample(inputs, branch * len(batch) + i))
                    row = {"prompt": first + i, "seed": seeds[i], "step": step, "branch": branch}
                    rows.append(row | {"timestep": recorded.timesteps[step]})
    samples = denoiser_inputs.stack(kept)
    _check_calls(samples, calibration.batch_size)
    return samples, rows


def record_component(
    component: "Component",
    name: str,
    family: ImageFamily,
    pipeline: Any,
    prompts: Sequence[str],
    calibration: Calibration,
) -> "tuple[dict[str, torch.Tensor], list[dict[str, Any]]]":
    """Run the float pipeline and record what one of its components receives, prompts and negative prompts alike.

    Args:
        component, name: of the pipeline; prompts: one string per sample of the prompt file.
    Returns:
        {input name: [samples, ...]}, and per sample {"prompt", "seed"}.
    Raises:
        DataError: the pipeline does not call the component, or its inputs make no batches.
    """
    kept, rows = [], []
    for first in progress(range(0, len(prompts), calibration.batch_size), description="calibrating", unit="batch"):
        batch = prompts[first : first + calibration.batch_size]
        seeds = [calibration.seed + first + i for i in range(len(batch))]
        draw = functools.partial(family.generate, pipeline, batch, seeds, calibration)
        seen = component_inputs.record(pipeline, name, component, family.denoiser(pipeline), draw)
        kept += seen
        rows += [{"prompt": first + i % len(batch), "seed": seeds[i % len(batch)]} for i in range(len(seen))]
    return component_inputs.even(kept, name), rows


def _check_calls(samples, batch):
    """Refuse samples that cannot be batched into denoiser calls of `batch` samples."""
    for first in range(0, len(next(iter(samples.values()))), batch):
        denoiser_inputs.nested({name: tensor[first : first + batch] for name, tensor in samples.items()})


def record_texts(
    family: TextFamily, pipeline: Any, texts: Sequence[str], reading: Reading
) -> "tuple[dict[str, torch.Tensor], list[dict[str, Any]]]":
    """Record the network inputs of calibration texts, which have no trajectory.

    Returns:
        {input name: [samples, ...]}, and per sample {"item"}.
    """
    samples = family.record(pipeline, texts, reading)
    return samples, [{"item": i} for i in range(len(next(iter(samples.values()))))]


def save(
    folder: str | Path,
    samples: "Mapping[str, torch.Tensor]",
    rows: Sequence[Mapping[str, Any]],
    details: Mapping[str, Any],
) -> None:
    """Write samples.safetensors, then manifest.json."""
    folder = Path(folder)
    manifest.write_tensors(folder / "samples.safetensors", samples)
    files = manifest.describe_files(folder, ["samples.safetensors"])
    manifest.write_json(folder / "manifest.json", {**details, "n_samples": len(rows), "samples": rows, "files": files})


def load(manifest_path: str | Path) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Return ({input name: [samples, ...]}, the manifest) of a saved calibration set.

    Raises:
        DataError: a file is missing, truncated or corrupted.
    """
    details = manifest.read_json(manifest_path)
    manifest.verify_files(manifest_path, details["files"])
    return load_file(Path(manifest_path).parent / "samples.safetensors"), details
