"""The training loop of the embedded models: warm-up, plateau, linear decay, weight averaging and checkpoints.

Every step has a separate random generator, so that an interrupted training that resumes sees the same batches as an
uninterrupted training. Under `torchrun`, the processes divide the rows of every batch among them, each on one thread:
on a busy machine that is faster than threads, which wait for each other at every operator.
"""

import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from training.muon import Muon

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training."""

    steps: int
    batch: int
    learning_rate: float
    muon: bool = False  # Muon for matrices and AdamW for the rest; False: AdamW for everything
    warmup: int = 100  # steps
    decay: float = 0.4  # fraction of the steps, at the end, over which the learning rate decays
    final: float = 0.0  # fraction of the learning rate at the end of the decay
    weight_decay: float = 0.01
    average: float = 0.998  # decay of the exponential moving average of the weights; 0: use the last weights


def cpu_seconds() -> float:
    """CPU time of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def autocast() -> torch.autocast:
    """bfloat16 matrix products and convolutions on the CPU."""
    return torch.autocast("cpu", torch.bfloat16)


def rank_and_size() -> tuple[int, int]:
    """The rank of this process, and the number of processes of the training."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_rows(batch: torch.Tensor) -> torch.Tensor:
    """This process's rows of a batch [n, ...]; n is a multiple of the number of processes."""
    rank, size = rank_and_size()
    return batch.chunk(size)[rank]


def average_gradients(parameters: list[torch.Tensor]) -> None:
    """Replaces the gradients by their mean over all processes."""
    size = rank_and_size()[1]
    if size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.div_(size).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def to_images(x: torch.Tensor) -> np.ndarray:
    """Float [n, 3, h, w] in [-1, 1] to uint8 [n, h, w, 3]."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def psnr_db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair of uint8 pictures [n, h, w, 3], in dB, at most 99."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3)) / 255**2
    return -10 * np.log10(np.maximum(error, 10**-9.9))


def rate_factor(step: int, recipe: Recipe) -> float:
    """The learning rate of a step as a fraction of the highest rate: warm-up, plateau, linear decay."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, recipe.final + (1 - recipe.final) * left)


def optimisers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the hidden matrices and AdamW for embeddings, vectors and convolutions."""
    adam, matrices = [], []
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in model.parameters():
        hidden = parameter.ndim == 2 and id(parameter) not in embeddings
        (matrices if recipe.muon and hidden else adam).append(parameter)
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adam, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    ]
    if matrices:
        chosen.append(Muon(matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay))
    return chosen


def load_average(model: torch.nn.Module, checkpoint: Path) -> int:
    """Loads the averaged weights of a training, finished or not, into `model`; returns the steps done so far."""
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter, mean in zip(parameters, state["average"], strict=True):
        parameter.data.copy_(mean)
    return state["step"]


def train(
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[int, torch.Generator], dict[str, torch.Tensor]],
    recipe: Recipe,
    checkpoint: Path,
    seed: int,
    every: int = 250,
) -> float:
    """Trains `model` in place, sets it to its averaged weights, and returns the CPU seconds used.

    `loss_of(step, generator)` returns the "loss" of one batch (of this process's rows), and further values to log.
    The state is written to `checkpoint` after every `every` steps; training resumes from `checkpoint` if it exists.
    The CPU seconds are those of one process.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    chosen = optimisers(model, recipe)
    first, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first, spent, average = state["step"], state["cpu_s"], state["average"]
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(chosen, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        log.info("%s resumes at step %d", name, first)
    began, smooth = cpu_seconds() - spent, {}
    rank = rank_and_size()[0]
    shown = {"initial": first, "total": recipe.steps, "mininterval": 10, "disable": rank > 0}
    bar = tqdm(range(first, recipe.steps), name, **shown)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for optimiser in chosen:
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate_factor(step, recipe)
        with sdpa_kernel(SDPBackend.MATH):  # the backward pass of fused attention is slow in bf16 on a CPU
            figures = loss_of(step, generator)
            figures["loss"].backward()
            figures = {key: float(value.detach()) for key, value in figures.items()}
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in chosen:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        kept = min(recipe.average, (1 + step) / (10 + step)) if recipe.average else 0.0
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - kept)
        for key, value in figures.items():
            smooth[key] = 0.98 * smooth.get(key, value) + 0.02 * value
        if (step + 1) % 50 == 0:
            text = " ".join(f"{key}={value:.4f}" for key, value in smooth.items())
            bar.set_postfix_str(text, refresh=False)
            if (step + 1) % every == 0 and rank == 0:
                log.info("%s step %d %s cpu_s=%.0f", name, step + 1, text, cpu_seconds() - began)
        if ((step + 1) % every == 0 or step + 1 == recipe.steps) and rank == 0:
            state = {
                "step": step + 1,
                "cpu_s": cpu_seconds() - began,
                "model": model.state_dict(),
                "average": average,
                "optimisers": [optimiser.state_dict() for optimiser in chosen],
            }
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)
    return cpu_seconds() - began
