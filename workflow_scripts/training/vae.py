"""The autoencoder of the embedded text-to-image model: 64 x 64 pictures to latents of 4 x 16 x 16."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from quantwatt.data import scenes
from training import loop

RECIPE = loop.Recipe(steps=1500, batch=32, learning_rate=2e-3, warmup=50, decay=0.6, final=5 / 14, average=0.99)
CROP = 32  # pixels: the network is convolutional, so that it can be trained on crops of a quarter of a picture
CROP_SHARE = 0.8  # share of the steps that train on crops, with batches twice as large


def new() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, batch: int = 256) -> torch.Tensor:
    """Mean latents of uint8 pictures [n, 64, 64, 3], float [n, 4, 16, 16], not normalised."""
    parts = []
    for start in range(0, len(images), batch):
        with loop.autocast():
            parts.append(vae.encode(loop.to_tensor(images[start : start + batch])).latent_dist.mean)
    return torch.cat(parts).float()


def normalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Latents with mean 0 and standard deviation 1, as the flow model is trained on."""
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """uint8 pictures of latents [n, 4, 16, 16] that are not normalised."""
    with loop.autocast():
        return loop.to_images(vae.decode(latents).sample)


def train(images: np.ndarray, checkpoint: Path, seed: int, recipe: loop.Recipe = RECIPE):
    """Trains on uint8 pictures [n, 64, 64, 3]; returns the autoencoder and the CPU seconds it took."""
    torch.manual_seed(seed)
    vae = new()

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        crops = step < CROP_SHARE * recipe.steps
        n = recipe.batch * 2 if crops else recipe.batch
        x = loop.to_tensor(images[torch.randint(len(images), (n,), generator=generator).numpy()])
        if crops:
            top, left = torch.randint(0, scenes.IMAGE_SIZE - CROP + 1, (2,), generator=generator).tolist()
            x = x[:, :, top : top + CROP, left : left + CROP].contiguous()
        with loop.autocast():
            latent = vae.encode(x).latent_dist
            y = vae.decode(latent.sample(generator)).sample.float()
        mean, variance = latent.mean.float(), latent.var.float()
        kl = 0.5 * (mean**2 + variance - 1 - latent.logvar.float()).mean()
        absolute, square = (y - x).abs().mean(), (y - x).pow(2).mean()
        return {"loss": absolute + 2 * square + 2e-4 * kl, "mse": square.detach(), "kl": kl.detach()}

    cpu_s = loop.train("vae", vae, loss_of, recipe, checkpoint, seed)
    vae.eval()
    latents = encode(vae, images[:1024])
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    return vae, cpu_s


def reconstruction_db(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean PSNR in dB of uint8 pictures [n, 64, 64, 3] after encoding and decoding."""
    return float(loop.psnr_db(decode(vae, encode(vae, images)), images).mean())
