"""The consistency model of digits: class-conditional, one step from noise to a picture (arXiv:2303.01469).

A consistency function gives, at every point of a trajectory of the probability flow, the picture that it ends in.
Song et al. learn it from a diffusion model's steps. The digits are few enough to do without one: of 1,437 pictures the
best denoiser is known, their mean weighted by how likely each was the one under the noise. Its trajectories are solved
exactly, and the network learns their ends.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import nn

from quantwatt import digits
from quantwatt.embedded import training

RECIPE = training.Recipe(steps=1500, batch=40, learning_rate=2e-3, warmup=50, decay=0.5, average=0.997)
LEVELS, SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 40, 0.002, 20.0, 0.5  # the scheduler's; its own sigma_max is 80
FROM_NOISE = 0.4  # share of training at the highest level, the only one that a single step knows
HUBER = 0.03  # where the loss turns from square to linear, in root mean square of a pixel


def new(seed: int) -> UNet2DModel:
    """An untrained network, with the parts of the ImageNet models: residual blocks that class and noise level scale
    and shift, that halve and double, attention, and skip connections."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=digits.IMAGE_SIZE,
        in_channels=1,
        out_channels=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=16,
        norm_num_groups=8,
        attn_norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=digits.CLASSES,
    )


def scheduler() -> CMStochasticIterativeScheduler:
    """The noise levels and scalings that training and sampling share."""
    return CMStochasticIterativeScheduler(
        num_train_timesteps=LEVELS, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA
    )


def consistency(network: nn.Module, levels: CMStochasticIterativeScheduler, x, sigma, classes) -> torch.Tensor:
    """The picture that the network sees at the end of the trajectories through `x`, as the pipeline computes it.

    Args:
        x: [n, 1, 16, 16]; sigma: noise levels [n]; classes: [n].
    """
    s = sigma[:, None, None, None]
    c_skip, c_out = levels.get_scalings_for_boundary_condition(s)
    timestep = 250 * torch.log(sigma + 1e-44)
    scaled = x / (s**2 + levels.config.sigma_data**2) ** 0.5
    return c_out * network(scaled, timestep, class_labels=classes, return_dict=False)[0] + c_skip * x


class ProbabilityFlow:
    """Trajectories of noise to pictures of each class, dx/ds = (x - D(x, s)) / s, by Heun's method.

    Args:
        images: pictures [n, 16, 16, 3] uint8; classes: [n].
        levels: of a scheduler, from the highest.
    """

    def __init__(self, images: np.ndarray, classes: np.ndarray, sigmas: torch.Tensor):
        x, classes = training.to_tensor(images)[:, :1].flatten(1), torch.from_numpy(classes)
        members = [x[classes == label] for label in range(digits.CLASSES)]
        most = max(map(len, members))
        self.pictures = torch.stack([nn.functional.pad(m, (0, 0, 0, most - len(m))) for m in members])  # [10, most, d]
        absent = torch.arange(most) >= torch.tensor([[len(m)] for m in members])
        # Half the squared length; a picture that only fills the shorter classes up is infinitely far away.
        self.norms = (self.pictures.pow(2).sum(-1) / 2).masked_fill(absent, torch.inf)
        self.sigmas = sigmas

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Mean of the pictures given that noise of deviation `sigma` gave `x` [10, m, 256], row i of class i."""
        likely = (x @ self.pictures.mT - self.norms[:, None]) / sigma**2
        return likely.softmax(-1) @ self.pictures

    def solve(self, noise: torch.Tensor) -> torch.Tensor:
        """Points [levels + 1, 10, m, 256] of the trajectories that start at noise [10, m, 256] of deviation 1.

        The last one is the denoised end: what is left of the noise at the lowest level is taken off.
        """
        x = noise * self.sigmas[0]
        points = [x]
        for sigma, lower in zip(self.sigmas, self.sigmas[1:], strict=False):
            slope = (x - self.denoised(x, sigma)) / sigma
            euler = x + (lower - sigma) * slope
            x = x + (lower - sigma) * (slope + (euler - self.denoised(euler, lower)) / lower) / 2
            points.append(x)
        return torch.stack([*points, self.denoised(x, self.sigmas[-1])])


def train(
    images: np.ndarray, classes: np.ndarray, checkpoint: Path, seed: int, recipe: training.Recipe = RECIPE
) -> tuple[UNet2DModel, float]:
    """Trains on uint8 pictures [n, 16, 16, 3] of classes [n]; returns the network and the CPU seconds it took."""
    network, levels = new(seed), scheduler()
    sigmas = levels.sigmas.float()
    flow = ProbabilityFlow(images, classes, sigmas)
    each = recipe.batch // digits.CLASSES
    asked = torch.arange(digits.CLASSES).repeat_interleave(each)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        points = flow.solve(torch.randn(digits.CLASSES, each, digits.IMAGE_SIZE**2, generator=generator))
        points = points.flatten(1, 2).unflatten(-1, (1, digits.IMAGE_SIZE, digits.IMAGE_SIZE))  # [41, n, 1, 16, 16]
        level = torch.randint(LEVELS, (len(asked),), generator=generator)
        level[torch.rand(len(asked), generator=generator) < FROM_NOISE] = 0
        x, end = points[level, torch.arange(len(asked))], points[-1]
        found = consistency(network, levels, x, sigmas[level], asked)
        square = (found - end).pow(2).mean((1, 2, 3))
        return {"loss": ((square + HUBER**2).sqrt() - HUBER).mean(), "one_step": square[level == 0].mean().detach()}

    cpu_s = training.train("consistency", network, loss_of, recipe, checkpoint, seed)
    return network.eval(), cpu_s


def pipeline(network: UNet2DModel) -> ConsistencyModelPipeline:
    """The network with its scheduler, as diffusers stores it."""
    return ConsistencyModelPipeline(unet=network, scheduler=scheduler())
