"""The consistency model of digits: class-conditional, one step from noise to a picture (arXiv:2303.01469).

A consistency function maps every point of a trajectory of the probability flow to the picture at its end. Song et al.
distil it from a diffusion model. The data set here, 1,437 pictures, is small enough to do without a diffusion model:
the optimal denoiser, the mean of the pictures weighted by their likelihood under the noise, is known exactly, and with
it the trajectories. The network is first trained on the ends of the trajectories. This teaches it the digits, but at
high noise little more than the mean picture of each class, because small details decide where a trajectory ends.
Training for consistency along the trajectories then restores the variety.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import nn

from quantwatt.data import digits
from training import loop

ENDS = loop.Recipe(steps=1500, batch=40, learning_rate=2e-3, warmup=50, decay=0.5, average=0.997)
DISTILLATION = loop.Recipe(steps=600, batch=40, learning_rate=1e-3, warmup=20, decay=0.5, average=0.99)
PIXELS = digits.IMAGE_SIZE**2
LEVELS, SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 40, 0.002, 20.0, 0.5  # of the scheduler, whose default sigma_max is 80
FROM_NOISE = 0.4  # share of the batch at the highest noise level, the only level that one-step sampling uses
HUBER = 0.03  # root mean square error per pixel where the first loss (`learn_ends`) turns from square to linear
FEWEST, MOST, DOUBLINGS = 10, 160, 5  # noise levels of the distillation, doubled repeatedly (arXiv:2310.14189)
LOG_SIGMA = (0.0, 2.0)  # mean and standard deviation of the logarithm of the noise level in the distillation
CLOSE = 0.00054  # the same for the distillation's loss


def new(seed: int) -> UNet2DModel:
    """An untrained network, with the same kinds of layers as the ImageNet models.

    These are residual blocks with scale and shift from the class and the noise level, residual blocks for down- and
    upsampling, attention, and skip connections.
    """
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
    """The scheduler: noise levels and scalings, the same for training and sampling."""
    return CMStochasticIterativeScheduler(
        num_train_timesteps=LEVELS, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA
    )


def consistency(network: nn.Module, levels: CMStochasticIterativeScheduler, x, sigma, classes) -> torch.Tensor:
    """The pictures that the network predicts at the ends of the trajectories through `x`, as the pipeline does.

    Args:
        x: [n, 1, 16, 16]; sigma: noise levels [n]; classes: [n].
    """
    s = sigma[:, None, None, None]
    c_skip, c_out = levels.get_scalings_for_boundary_condition(s)
    timestep = 250 * torch.log(sigma + 1e-44)
    scaled = x / (s**2 + levels.config.sigma_data**2) ** 0.5
    return c_out * network(scaled, timestep, class_labels=classes, return_dict=False)[0] + c_skip * x


class ProbabilityFlow:
    """Trajectories from noise to pictures of each class, dx/ds = (x - D(x, s)) / s, solved by Heun's method.

    Args:
        images: pictures [n, 16, 16, 3] uint8; classes: [n].
        sigmas: noise levels of a scheduler, in decreasing order.
    """

    def __init__(self, images: np.ndarray, classes: np.ndarray, sigmas: torch.Tensor):
        x, classes = loop.to_tensor(images)[:, :1].flatten(1), torch.from_numpy(classes)
        members = [x[classes == label] for label in range(digits.CLASSES)]
        self.counts = [len(m) for m in members]
        most = max(self.counts)
        self.pictures = torch.stack([nn.functional.pad(m, (0, 0, 0, most - len(m))) for m in members])  # [10, most, d]
        absent = torch.arange(most) >= torch.tensor(self.counts)[:, None]
        # Half the squared norm; infinite for padding pictures of the smaller classes, so that their weight is zero.
        self.norms = (self.pictures.pow(2).sum(-1) / 2).masked_fill(absent, torch.inf)
        self.sigmas = sigmas

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The optimal denoiser: the posterior mean of the pictures of class i for x[i], x [10, m, 256].

        sigma: standard deviation of the noise, one for all or [10, m, 1].
        """
        likely = (x @ self.pictures.mT - self.norms[:, None]) / sigma**2
        return likely.softmax(-1) @ self.pictures

    def solve(self, noise: torch.Tensor) -> torch.Tensor:
        """Points [levels + 1, 10, m, 256] of the trajectories that start at standard normal noise [10, m, 256].

        The last point is denoised, to remove the noise of the lowest level.
        """
        points = [noise * self.sigmas[0]]
        for sigma, lower in zip(self.sigmas, self.sigmas[1:], strict=False):
            points.append(self.step(points[-1], sigma, lower))
        return torch.stack([*points, self.denoised(points[-1], self.sigmas[-1])])

    def step(self, x: torch.Tensor, sigma: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        """One Heun step of the trajectories through `x` [10, m, 256] from noise `sigma` to noise `lower`."""
        slope = (x - self.denoised(x, sigma)) / sigma
        euler = x + (lower - sigma) * slope
        return x + (lower - sigma) * (slope + (euler - self.denoised(euler, lower)) / lower) / 2

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random pictures [10, count, 256], drawn from each class with replacement."""
        chosen = [torch.randint(n, (count,), generator=generator) for n in self.counts]
        return torch.stack([members[index] for members, index in zip(self.pictures, chosen, strict=True)])


def learn_ends(network: UNet2DModel, flow: ProbabilityFlow, checkpoint: Path, seed: int, recipe: loop.Recipe):
    """Trains the network in place to map points of trajectories to their ends; returns the CPU seconds used."""
    levels = scheduler()
    sigmas = levels.sigmas.float()
    asked = classes_of(recipe)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        points = flow.solve(torch.randn(digits.CLASSES, recipe.batch // digits.CLASSES, PIXELS, generator=generator))
        points = as_images(points.flatten(1, 2))  # [41, n, 1, 16, 16]
        level = torch.randint(LEVELS, (len(asked),), generator=generator)
        level[torch.rand(len(asked), generator=generator) < FROM_NOISE] = 0
        x, end = points[level, torch.arange(len(asked))], points[-1]
        square = (consistency(network, levels, x, sigmas[level], asked) - end).pow(2).mean((1, 2, 3))
        return {"loss": ((square + HUBER**2).sqrt() - HUBER).mean(), "one_step": square[level == 0].mean().detach()}

    return loop.train("ends", network, loss_of, recipe, checkpoint, seed)


def distil(network: UNet2DModel, flow: ProbabilityFlow, checkpoint: Path, seed: int, recipe: loop.Recipe):
    """Trains the network in place for equal outputs at neighbouring points of a trajectory; returns the CPU seconds.

    Schedules and loss are those of consistency training without a diffusion model (Song and Dhariwal,
    arXiv:2310.14189).
    """
    levels, asked = scheduler(), classes_of(recipe)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        count = min(FEWEST * 2 ** int(DOUBLINGS * step / recipe.steps), MOST) + 1
        sigmas = torch.from_numpy(levels._convert_to_karras(np.linspace(0, 1, count))).float()  # in decreasing order
        mean, deviation = LOG_SIGMA
        edges = torch.special.ndtr((sigmas.log() - mean) / deviation)
        level = torch.multinomial(edges[:-1] - edges[1:], recipe.batch, replacement=True, generator=generator)
        high, low = (sigmas[index].view(digits.CLASSES, -1, 1) for index in (level, level + 1))
        x = flow.draw(recipe.batch // digits.CLASSES, generator)
        x = x + high * torch.randn(x.shape, generator=generator)
        below = flow.step(x, high, low)
        x, below = as_images(x.flatten(0, 1)), as_images(below.flatten(0, 1))
        with torch.no_grad():
            wanted = consistency(network, levels, below, low.flatten(), asked)
        square = (consistency(network, levels, x, high.flatten(), asked) - wanted).pow(2).mean((1, 2, 3))
        apart = (square + CLOSE**2).sqrt() - CLOSE
        return {"loss": (apart / (high - low).flatten()).mean(), "apart": apart.mean().detach()}

    return loop.train("distillation", network, loss_of, recipe, checkpoint, seed)


def classes_of(recipe: loop.Recipe) -> torch.Tensor:
    """The classes of a batch [n]: every digit equally often, in ascending order."""
    return torch.arange(digits.CLASSES).repeat_interleave(recipe.batch // digits.CLASSES)


def as_images(x: torch.Tensor) -> torch.Tensor:
    """Pixels [..., 256] reshaped to greyscale pictures [..., 1, 16, 16]."""
    return x.unflatten(-1, (1, digits.IMAGE_SIZE, digits.IMAGE_SIZE))


def train(
    images: np.ndarray,
    classes: np.ndarray,
    checkpoints: Path,
    seed: int,
    recipes: tuple[loop.Recipe, loop.Recipe] = (ENDS, DISTILLATION),
) -> tuple[UNet2DModel, float]:
    """Trains on uint8 pictures [n, 16, 16, 3] of classes [n]; returns the network and the CPU seconds it took."""
    network, flow = new(seed), ProbabilityFlow(images, classes, scheduler().sigmas.float())
    cpu_s = learn_ends(network, flow, checkpoints / "consistency-ends.pt", seed, recipes[0])
    cpu_s += distil(network, flow, checkpoints / "consistency-distillation.pt", seed, recipes[1])
    return network.eval(), cpu_s


def pipeline(network: UNet2DModel) -> ConsistencyModelPipeline:
    """The network with its scheduler, as diffusers stores it."""
    return ConsistencyModelPipeline(unet=network, scheduler=scheduler())
