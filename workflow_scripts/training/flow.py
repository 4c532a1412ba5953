"""The text-to-image model: a small Stable Diffusion 3 with two CLIP text encoders and no T5.

Rectified flow as in Esser et al. 2024 (arXiv:2403.03206): x_t = (1 - t) x + t e, the network predicts e - x,
and t follows a logit-normal distribution.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training import loop
from training import tokenizer as captions_tokenizer

RECIPE = loop.Recipe(steps=12000, batch=64, learning_rate=3e-3, muon=True, warmup=200, decay=0.4, average=0.999)
WIDTH, BLOCKS, HEADS = 128, 6, 4
TEXT_WIDTH, TEXT_LAYERS = 64, 3
LATENT = (4, 16, 16)
T5_TOKENS = 1  # zero vectors in place of T5 tokens: call the pipeline with max_sequence_length=1
NO_CAPTION = 0.1  # share of captions dropped in training, for classifier-free guidance


class TextToImage(nn.Module):
    """Transformer and text encoders, trained together."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=2,
            max_position_embeddings=captions_tokenizer.CONTEXT,
            projection_dim=TEXT_WIDTH,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        self.text_encoder = CLIPTextModelWithProjection(text)
        self.text_encoder_2 = CLIPTextModelWithProjection(text)
        self.transformer = SD3Transformer2DModel(
            sample_size=LATENT[1],
            patch_size=2,
            in_channels=LATENT[0],
            out_channels=LATENT[0],
            num_layers=BLOCKS,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
        for encoder in (self.text_encoder, self.text_encoder_2):
            # With CLIP's initial standard deviation, 0.02, captions would have an effect only late in a short training.
            nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear):
                # Modulation and output start at zero, as in DiT; diffusers does not do that.
                starts_at_zero = "norm1" in name or name.startswith(("norm_out", "proj_out"))
                if starts_at_zero:
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditioning as StableDiffusion3Pipeline computes it from token ids [n, CONTEXT].

        Returns one vector per token [n, CONTEXT + T5_TOKENS, 2 * TEXT_WIDTH] and per caption [n, 2 * TEXT_WIDTH].
        """
        encoded = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        tokens = torch.cat([e.hidden_states[-2] for e in encoded], -1)
        return nn.functional.pad(tokens, (0, 0, 0, T5_TOKENS)), torch.cat([e.text_embeds for e in encoded], -1)


def new(tokenizer: CLIPTokenizer, seed: int) -> TextToImage:
    """An untrained model."""
    torch.manual_seed(seed)
    return TextToImage(tokenizer)


def train(
    latents: torch.Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    seed: int,
    recipe: loop.Recipe = RECIPE,
) -> tuple[TextToImage, float]:
    """Trains on normalised latents [n, 4, 16, 16] and their captions; returns the model and the CPU seconds used."""
    model = new(tokenizer, seed)
    ids = captions_tokenizer.encode(tokenizer, captions)
    no_caption = captions_tokenizer.encode(tokenizer, [""])[0]
    transformer = torch.compile(model.transformer)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(latents), (recipe.batch,), generator=generator)
        x, condition = latents[chosen], ids[chosen].clone()
        condition[torch.rand(recipe.batch, generator=generator) < NO_CAPTION] = no_caption
        t = torch.sigmoid(torch.randn(recipe.batch, generator=generator))
        noise = torch.randn(x.shape, generator=generator)
        x, condition, t, noise = map(loop.own_rows, (x, condition, t, noise))
        mix = t[:, None, None, None]
        with loop.autocast():
            tokens, pooled = model.embed(condition)
            predicted = transformer(
                hidden_states=(1 - mix) * x + mix * noise,
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=t * 1000,
                return_dict=False,
            )[0]
        return {"loss": (predicted.float() - (noise - x)).pow(2).mean()}

    cpu_s = loop.train("flow", model, loss_of, recipe, checkpoint, seed)
    return model.eval(), cpu_s


def pipeline(model: TextToImage, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """The components as a pipeline in bfloat16."""
    return StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).to(torch.bfloat16)
