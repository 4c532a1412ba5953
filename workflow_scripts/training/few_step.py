"""The few-step text-to-image model: a small Stable Diffusion XL that generates an image in one step, like SDXL-Turbo.

A one-step model learns a function from noise to image. SDXL-Turbo distils this function from the trajectories of a
large model. Here the renderer defines it: the lowest frequencies of the noise, which are independent standard normal
numbers, are the renderer's random numbers, and so determine the positions of the objects (`Draws`). At the first
timestep the network is trained on pairs of noise and render. At all other timesteps it is trained on renders with
fresh noise, because the ancestral sampler adds fresh noise to the picture between two steps.

The scheduler differs from SDXL-Turbo's in the prediction type: "v_prediction" instead of "epsilon". With "epsilon", the
error of the noise predicted at the first timestep is multiplied by 14.6 in the picture, too much for a network this
small.

Two properties of SDXL that quantization methods have to handle are added on purpose. (1) Token 0, which is the same for
all prompts, is huge in a few channels of the text embeddings (823 against 10 to 15 in SDXL, OUTLIER here); MixDQ
(arXiv:2405.17873) therefore separates it from the other tokens. (2) In training, half of the pooled embeddings belong
to another caption, so that the network has to use the tokens, as it must for prompts longer than these captions.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from quantwatt.data import scenes
from training import loop
from training import tokenizer as captions_tokenizer

RECIPE = loop.Recipe(steps=4000, batch=32, learning_rate=2e-3, muon=True, warmup=200, decay=0.5, average=0.998)
PAIRS = 30_000
WIDTHS, HEADS = (32, 64, 64), (1, 2, 2)
TEXT_WIDTH = 64
TIME_IDS = (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 0, 0, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)  # size, crop, target
TIME_ID_WIDTH = 32
LATENT = (4, 16, 16)
FIRST = 999  # the timestep of pure noise
FIRST_SHARE = 0.625  # share of every batch that is at the first timestep
EXCHANGED = 0.5  # share of pooled embeddings that belong to another caption
TEXT_SCALE = 0.25  # factor on the text encoders' residual stream, whose standard deviation is then about 1.5
OUTLIER = 512.0  # magnitude of token 0 in OUTLIER_CHANNELS: positive in the first, negative in the second
OUTLIER_CHANNELS = (0, 1)  # of each text encoder


class Draws:
    """Uniform random numbers for `scenes.render`, computed from the low frequencies of a latent's noise [4, 16, 16].

    The projection of a channel on a cosine is standard normal and independent of all other projections; the normal
    distribution function maps it to a uniform number.
    """

    FREQUENCIES = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2))  # (row, column); 20 numbers, a scene needs 17

    def __init__(self, noise: np.ndarray):
        rows, columns = zip(*self.FREQUENCIES, strict=True)
        cosines = _cosines(noise.shape[-1], max(*rows, *columns) + 1)
        patterns = cosines[list(rows)][:, :, None] * cosines[list(columns)][:, None, :]  # [frequencies, 16, 16]
        normal = torch.from_numpy(np.einsum("fxy,cxy->fc", patterns, noise))
        self._left = iter(torch.special.ndtr(normal.double()).flatten().tolist())

    def uniform(self, low: float, high: float, size: int | None = None):
        """Like numpy.random.Generator.uniform; raises StopIteration when all numbers are used."""
        if size is None:
            return low + (high - low) * next(self._left)
        return np.array([self.uniform(low, high) for _ in range(size)])


def _cosines(n: int, count: int) -> np.ndarray:
    """The first rows of the orthonormal discrete cosine transform, [count, n]."""
    angles = np.pi / n * np.outer(np.arange(count), np.arange(n) + 0.5)
    return np.cos(angles) * np.where(np.arange(count) == 0, np.sqrt(1 / n), np.sqrt(2 / n))[:, None]


def noises(n: int, seed: int) -> torch.Tensor:
    """The noise [n, 4, 16, 16] of the training pairs."""
    return torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(seed))


def renders(noise: torch.Tensor, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures uint8 [n, 64, 64, 3] rendered from the noise [n, 4, 16, 16], and their captions, none held out."""
    drawn = scenes.random_scenes(len(noise), np.random.default_rng(seed), held=False)
    pictures = [scenes.render(scene, Draws(each)) for scene, each in zip(drawn, noise.numpy(), strict=True)]
    return np.stack(pictures), [scenes.caption(scene) for scene in drawn]


class TextToImage(nn.Module):
    """UNet and text encoders, trained together; the encoders start from those of the embedded Stable Diffusion 3."""

    def __init__(self, teacher: Path):
        super().__init__()
        encoders = [
            CLIPTextModelWithProjection.from_pretrained(teacher / part, dtype=torch.float32)
            for part in ("text_encoder", "text_encoder_2")
        ]
        for encoder in encoders:
            _rescale(encoder, TEXT_SCALE)
            position = encoder.text_model.embeddings.position_embedding.weight.data[0]
            position[list(OUTLIER_CHANNELS)] = torch.tensor([OUTLIER, -OUTLIER])
        self.text_encoder = CLIPTextModel(encoders[0].config)
        self.text_encoder.load_state_dict(encoders[0].text_model.state_dict())
        self.text_encoder_2 = encoders[1]
        self.unet = UNet2DConditionModel(
            sample_size=LATENT[1],
            in_channels=LATENT[0],
            out_channels=LATENT[0],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=WIDTHS,
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=HEADS,  # in SDXL's configuration, too, this key is the number of heads
            cross_attention_dim=2 * TEXT_WIDTH,
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_ID_WIDTH,
            projection_class_embeddings_input_dim=TEXT_WIDTH + len(TIME_IDS) * TIME_ID_WIDTH,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        # In training the outlier is scaled to 1; `fold` then moves the scale into the layers. An optimiser takes steps
        # of the same size for all weights of a layer: OUTLIER times too large for the weights of these channels.
        scale = torch.ones(2, TEXT_WIDTH)
        scale[:, list(OUTLIER_CHANNELS)] = 1 / OUTLIER
        self.register_buffer("scale", scale.flatten())

    def embed(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditioning as StableDiffusionXLPipeline computes it from token ids [n, CONTEXT].

        Returns one vector per token [n, CONTEXT, 2 * TEXT_WIDTH], times `scale`, and per caption [n, TEXT_WIDTH].
        """
        encoded = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        return torch.cat([e.hidden_states[-2] for e in encoded], -1) * self.scale, encoded[1].text_embeds

    def fold(self) -> None:
        """Multiplies the columns of all layers whose inputs are tokens by `scale`, then sets `scale` to 1."""
        for name, module in self.unet.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                module.weight.data *= self.scale
        self.scale.fill_(1)


def _rescale(encoder: CLIPTextModelWithProjection, factor: float) -> None:
    """Multiplies the residual stream by `factor`; the outputs stay the same because of the normalisations."""
    writes = ("token_embedding", "position_embedding", "out_proj", "fc2")
    for name, parameter in encoder.named_parameters():
        if name.split(".")[-2] in writes:
            parameter.data *= factor


def scheduler() -> EulerAncestralDiscreteScheduler:
    """SDXL-Turbo's scheduler, with v-prediction."""
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def new(teacher: Path, seed: int) -> TextToImage:
    """An untrained model with the text encoders of the pipeline in the folder `teacher`."""
    torch.manual_seed(seed)
    return TextToImage(teacher)


def train(
    latents: torch.Tensor,
    noise: torch.Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    teacher: Path,
    checkpoint: Path,
    seed: int,
    recipe: loop.Recipe = RECIPE,
) -> tuple[TextToImage, float]:
    """Trains on normalised latents [n, 4, 16, 16], the noise that they were rendered from, and their captions.

    Returns the model, with its text outliers folded into its layers, and the CPU seconds used.
    """
    model = new(teacher, seed)
    ids = captions_tokenizer.encode(tokenizer, captions)
    signals = scheduler().alphas_cumprod.sqrt()  # [1000], factor of the picture
    deviations = (1 - scheduler().alphas_cumprod).sqrt()  # [1000], factor of the noise
    n = recipe.batch
    first = (torch.arange(n) < FIRST_SHARE * n)[:, None, None, None]
    time_ids = torch.tensor([TIME_IDS] * n)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(latents), (n,), generator=generator)
        picture, paired = latents[chosen], noise[chosen]
        t = torch.randint(FIRST, (n,), generator=generator).where(~first.flatten(), FIRST)
        fresh = torch.randn(picture.shape, generator=generator)
        signal, deviation = (part[t][:, None, None, None] for part in (signals, deviations))
        # The sampler starts from pure noise, without the small signal that the schedule leaves at the first timestep.
        noised = torch.where(first, deviation * paired, signal * picture + deviation * fresh)
        tokens, pooled = model.embed(ids[chosen])
        exchanged = torch.rand(n, 1, generator=generator) < EXCHANGED
        velocity = model.unet(
            noised,
            t,
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": pooled.roll(1, 0).where(exchanged, pooled), "time_ids": time_ids},
            return_dict=False,
        )[0]
        error = (signal * noised - deviation * velocity - picture).pow(2).mean((1, 2, 3))
        parts = {"first": error[first.flatten()].mean(), "others": error[~first.flatten()].mean()}
        return {"loss": error.mean(), **parts}

    cpu_s = loop.train("few-step", model, loss_of, recipe, checkpoint, seed)
    model.fold()
    return model.eval(), cpu_s


def pipeline(model: TextToImage, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    """The components as a pipeline in bfloat16; `vae` is the autoencoder of the embedded Stable Diffusion 3."""
    # Stable Diffusion 3 calls the mean of latents shift. No upcast: this decoder does not overflow in 16 bit.
    channels, shift = vae.config.latent_channels, vae.config.shift_factor
    mean = {"latents_mean": [shift] * channels, "latents_std": [1.0] * channels, "shift_factor": None}
    vae.register_to_config(**mean, force_upcast=False, _name_or_path="")  # not the folder that it was loaded from
    return StableDiffusionXLPipeline(
        unet=model.unet,
        scheduler=scheduler(),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer,
        add_watermarker=False,
    ).to(torch.bfloat16)
