"""Trains the embedded few-step text-to-image model from a seed, and evaluates it.

The model is a small Stable Diffusion XL that generates an image in one step. It takes the autoencoder, the tokenizer
and the initial weights of its text encoders from the embedded Stable Diffusion 3 (resources/models/tiny-sd3). The
stages are

  pairs       latents of scenes whose positions, sizes and tints are computed from noise (next to the checkpoints)
  train       resources/models/tiny-sdxl/: UNet and text encoders
  evaluate    resources/models/evaluation-tiny-sdxl.json, from the saved model

Without a stage all of them run, in this order. An interrupted training resumes from its last checkpoint.
"""

import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from quantwatt.artifacts.images import to_uint8
from quantwatt.jobs.progress import progress
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing
from quantwatt.score import attribute_classifier as attributes
from training import few_step, judge, loop, stages
from training import vae as autoencoder

FAMILY = load_family("sdxl")

log = logging.getLogger(__name__)

STAGES = ("pairs", "train", "evaluate")
FLOAT = {"dtype": "float32"}
DRAWING = Drawing(guidance=0.0, height=64, width=64)
STEPS = (1, 2, 4)
BATCH = 64
FIRST_IMAGES = 32  # a quick check that a model is the one that was evaluated


def load_vae(models: Path):
    """The autoencoder of the embedded Stable Diffusion 3, in float32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(models / "tiny-sd3", subfolder="vae", torch_dtype=torch.float32)


@torch.no_grad()
def make_pairs(models: Path, folder: Path, seed: int) -> None:
    """Writes the normalised latents [PAIRS, 4, 16, 16] of the renders that belong to the noise, and their captions."""
    vae, noise = load_vae(models), few_step.noises(few_step.PAIRS, seed)
    pictures, captions = few_step.renders(noise, seed)
    parts = [
        vae.encode(loop.to_tensor(pictures[start : start + BATCH])).latent_dist.mean
        for start in progress(range(0, len(pictures), BATCH), description="encoding", unit="batch")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"latents": autoencoder.normalise(vae, torch.cat(parts)), "captions": captions}, folder / "pairs.pt")


def train(models: Path, folder: Path, seed: int, unfinished: bool) -> None:
    """Trains on the pairs and saves the pipeline; an unfinished training is saved as it is."""
    from transformers import CLIPTokenizer

    teacher = models / "tiny-sd3"
    words = CLIPTokenizer.from_pretrained(teacher, subfolder="tokenizer")
    if unfinished:
        model = few_step.new(teacher, seed)
        log.info("saving the model of step %d", loop.load_average(model, folder / "few-step.pt"))
        model.fold()
    else:
        pairs = torch.load(folder / "pairs.pt", weights_only=True)
        noise = few_step.noises(len(pairs["latents"]), seed)
        checkpoint = folder / "few-step.pt"
        model, _ = few_step.train(pairs["latents"], noise, pairs["captions"], words, teacher, checkpoint, seed)
    target = models / "tiny-sdxl"
    shutil.rmtree(target, ignore_errors=True)
    few_step.pipeline(model.eval(), load_vae(models), words).save_pretrained(target)
    for part in ("tokenizer", "tokenizer_2"):  # a tokenizer that has padded a batch saves its padding as a setting
        shutil.copytree(teacher / part, target / part, dirs_exist_ok=True)


def draw(pipeline, prompts: list[str], steps: int) -> np.ndarray:
    """uint8 images [n, 64, 64, 3] of the prompts; image i has seed i."""
    drawing, drawn = replace(DRAWING, steps=steps), []
    for first in progress(range(0, len(prompts), BATCH), description=f"{steps} steps", unit="batch"):
        part = prompts[first : first + BATCH]
        drawn.append(to_uint8(FAMILY.generate(pipeline, part, range(first, first + len(part)), drawing), first))
    return np.concatenate(drawn)


def right(models: Path, images: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """The share of images with all attributes of their prompt right, according to the attribute classifier."""
    all_right, two = attributes.all_right(attributes.load(models / "attributes"), images, prompts)
    return {"one_object": all_right[~two].mean(), "two_objects": all_right[two].mean(), "all": all_right.mean()}


@torch.no_grad()
def first_token(pipeline, prompts: list[str]) -> dict[str, float]:
    """Absolute maximum of token 0, its ratio to that of all other tokens, and the change of token 0 over prompts."""
    tokens = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)[0]  # [n, tokens, channels]
    largest, others = tokens[:, 0].abs().max(), tokens[:, 1:].abs().max()
    change = (tokens[:, 0] - tokens[:1, 0]).abs().max()
    return {"largest": float(largest), "ratio_to_others": float(largest / others), "change": float(change)}


def evaluate(models: Path, prompts: list[str], seed: int) -> dict:
    """Evaluation of the saved model."""
    folder = models / "tiny-sdxl"
    pipeline, critic = FAMILY.load(FLOAT, folder), judge.Judge(models / "judge")
    captions, figures = critic.captions(prompts), {}
    for steps in STEPS:
        images = draw(pipeline, prompts, steps)
        figures[f"generated_in_{steps}"] = {
            **right(models, images, prompts),
            "one_object_of_first": right(models, images[:FIRST_IMAGES], prompts[:FIRST_IMAGES])["one_object"],
            "two_objects_of_first": right(models, images[:FIRST_IMAGES], prompts[:FIRST_IMAGES])["two_objects"],
            "clip_score": 100 * float((critic.pictures(images) * captions).sum(-1).mean()),
        }
    return {
        "seed": seed,
        "parameters": {
            name: sum(p.numel() for p in getattr(pipeline, name).parameters())
            for name in ("unet", "text_encoder", "text_encoder_2", "vae")
        },
        "size_mb": stages.folder_mb(folder),
        "images": len(prompts),
        **figures,
        "first_token": first_token(pipeline, prompts),
    }


def main(argv: list[str] | None = None) -> None:
    """Runs the chosen stages."""
    made = stages.parser(__doc__, STAGES)
    made.add_argument("--prompts", type=Path, default=Path("resources/prompts"), help="folder of the captions")
    made.add_argument(
        "--unfinished", action="store_true", help="do not train; save the averaged weights of the checkpoint"
    )
    chosen = stages.begin(made, argv)
    asked, models, checkpoints, seed = chosen.stage or STAGES, chosen.models, chosen.checkpoints, chosen.seed
    if "pairs" in asked:
        make_pairs(models, checkpoints, seed)
    if "train" in asked:
        train(models, checkpoints, seed, chosen.unfinished)
    if "evaluate" in asked:
        figures = evaluate(models, (chosen.prompts / "shapes-test.txt").read_text().splitlines(), seed)

        def record(previous):
            trained = stages.training_record(checkpoints / "few-step.pt", few_step.RECIPE, previous)
            return {"pairs": few_step.PAIRS} | trained

        stages.write_evaluation(models / "evaluation-tiny-sdxl.json", figures, record)


if __name__ == "__main__":
    main()
