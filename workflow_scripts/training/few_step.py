"""The few-step text-to-image model: a small Stable Diffusion XL that draws in one step, as SDXL-Turbo does.

What one step can learn is a function of the noise. SDXL-Turbo takes it from a large model's trajectories; here the
scenes are our own, so the noise itself says where a picture's objects stand: its lowest frequencies, each standard
normal by itself, are the random numbers of the renderer (`Draws`). At the first timestep the network sees that noise
and its render. At all others it sees renders under fresh noise, which is what the ancestral sampler makes of a picture
between two steps.

It differs from SDXL-Turbo in one setting of the scheduler, the prediction type: "v_prediction" in the place of
"epsilon". An error of the noise predicted at the first timestep stands 14.6 times as large in the picture of one step,
which a network this small cannot afford.

Two traits of SDXL are put there on purpose, so that what a method has to cope with there is here too. Token 0, which
no prompt changes, is huge (823 against 10 to 15 in SDXL, OUTLIER here) in a few channels of the text: MixDQ
(arXiv:2405.17873) keeps it apart from the others. And half of the pooled embeddings in training are another
caption's, so that the network reads the tokens, as it has to for prompts longer than these.
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
FIRST_SHARE = 0.625  # of every batch
EXCHANGED = 0.5  # share of pooled embeddings that are another caption's
TEXT_SCALE = 0.25  # of the text encoders' residual stream, whose deviation is then about 1.5
OUTLIER = 512.0  # of token 0, up in the one and down in the other of
OUTLIER_CHANNELS = (0, 1)  # of each text encoder


class Draws:
    """Uniform random numbers for `scenes.render` that are the low frequencies of a latent's noise [4, 16, 16].

    Every channel's projection on a cosine is standard normal and independent of the others; the normal
    distribution function makes it uniform.
    """

    FREQUENCIES = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2))  # of rows and columns: 20 numbers, a scene needs 17

    def __init__(self, noise: np.ndarray):
        rows, columns = zip(*self.FREQUENCIES, strict=True)
        cosines = _cosines(noise.shape[-1], max(*rows, *columns) + 1)
        patterns = cosines[list(rows)][:, :, None] * cosines[list(columns)][:, None, :]  # [frequencies, 16, 16]
        normal = torch.from_numpy(np.einsum("fxy,cxy->fc", patterns, noise))
        self._left = iter(torch.special.ndtr(normal.double()).flatten().tolist())

    def uniform(self, low: float, high: float, size: int | None = None):
        """As numpy.random.Generator.uniform; StopIteration when all numbers are used."""
        if size is None:
            return low + (high - low) * next(self._left)
        return np.array([self.uniform(low, high) for _ in range(size)])


def _cosines(n: int, count: int) -> np.ndarray:
    """The first rows of the orthonormal discrete cosine transform, [count, n]."""
    angles = np.pi / n * np.outer(np.arange(count), np.arange(n) + 0.5)
    return np.cos(angles) * np.where(np.arange(count) == 0, np.sqrt(1 / n), np.sqrt(2 / n))[:, None]


def noises(n: int, seed: int) -> torch.Tensor:
    """The noise of every pair, [n, 4, 16, 16]."""
    return torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(seed))


def renders(noise: torch.Tensor, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures uint8 [n, 64, 64, 3] that the noise [n, 4, 16, 16] stands for, and their captions, none held out."""
    drawn = scenes.random_scenes(len(noise), np.random.default_rng(seed), held=False)
    pictures = [scenes.render(scene, Draws(each)) for scene, each in zip(drawn, noise.numpy(), strict=True)]
    return np.stack(pictures), [scenes.caption(scene) for scene in drawn]


class TextToImage(nn.Module):
    """UNet and text encoders, trained together; the encoders begin as those of the embedded Stable Diffusion 3."""

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
            attention_head_dim=HEADS,  # SDXL's configuration, too, counts heads under this name
            cross_attention_dim=2 * TEXT_WIDTH,
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_ID_WIDTH,
            projection_class_embeddings_input_dim=TEXT_WIDTH + len(TIME_IDS) * TIME_ID_WIDTH,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        # Training reads the outlier as 1 (`fold` makes that part of the layers): the steps of an optimiser are of one
        # size for all weights of a layer, and would be OUTLIER times too long for what reads these channels.
        scale = torch.ones(2, TEXT_WIDTH)
        scale[:, list(OUTLIER_CHANNELS)] = 1 / OUTLIER
        self.register_buffer("scale", scale.flatten())

    def embed(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditions as StableDiffusionXLPipeline builds them from token ids [n, CONTEXT].

        Returns one vector per token [n, CONTEXT, 2 * TEXT_WIDTH], times `scale`, and per caption [n, TEXT_WIDTH].
        """
        encoded = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        return torch.cat([e.hidden_states[-2] for e in encoded], -1) * self.scale, encoded[1].text_embeds

    def fold(self) -> None:
        """Multiplies the columns of all layers that read tokens by `scale`, which is 1 from then on."""
        for name, module in self.unet.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                module.weight.data *= self.scale
        self.scale.fill_(1)


def _rescale(encoder: CLIPTextModelWithProjection, factor: float) -> None:
    """Multiplies the residual stream by `factor`; normalisations make all else the same as before."""
    writes = ("token_embedding", "position_embedding", "out_proj", "fc2")
    for name, parameter in encoder.named_parameters():
        if name.split(".")[-2] in writes:
            parameter.data *= factor


def scheduler() -> EulerAncestralDiscreteScheduler:
    """SDXL-Turbo's, for predictions of velocity."""
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
    """Trains on normalised latents [n, 4, 16, 16] of captions and the noise that stands for them.

    Returns the model, its text outliers folded into its layers, and the CPU seconds it took.
    """
    model = new(teacher, seed)
    ids = captions_tokenizer.encode(tokenizer, captions)
    signals = scheduler().alphas_cumprod.sqrt()  # [1000], of the picture; of the noise:
    deviations = (1 - scheduler().alphas_cumprod).sqrt()
    n = recipe.batch
    first = (torch.arange(n) < FIRST_SHARE * n)[:, None, None, None]
    time_ids = torch.tensor([TIME_IDS] * n)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(latents), (n,), generator=generator)
        picture, own = latents[chosen], noise[chosen]
        t = torch.randint(FIRST, (n,), generator=generator).where(~first.flatten(), FIRST)
        fresh = torch.randn(picture.shape, generator=generator)
        signal, deviation = (part[t][:, None, None, None] for part in (signals, deviations))
        # The sampler starts from noise alone, without the trace of a picture that the schedule leaves.
        noised = torch.where(first, deviation * own, signal * picture + deviation * fresh)
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
    """The parts as a pipeline in bfloat16; `vae` is the embedded Stable Diffusion 3's."""
    # What that model calls shift this pipeline calls mean; and its decoder does not overflow in 16 bits.
    channels, shift = vae.config.latent_channels, vae.config.shift_factor
    mean = {"latents_mean": [shift] * channels, "latents_std": [1.0] * channels, "shift_factor": None}
    vae.register_to_config(**mean, force_upcast=False, _name_or_path="")  # it is here now, not where it came from
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
