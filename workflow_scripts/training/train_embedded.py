"""Trains the embedded models from a seed, and evaluates them.

The models are a text-to-image model (a small Stable Diffusion 3), a judge (a small CLIP) and an attribute
classifier, all trained on scenes of coloured shapes that this repository renders. The stages are

  prompts     resources/prompts/: 512 test and 64 calibration captions
  flow        resources/models/tiny-sd3/: autoencoder, then transformer and text encoders
  judge       resources/models/judge/: an open_clip model, to be loaded as local-dir:resources/models/judge
  attributes  resources/models/attributes/: the attribute classifier
  evaluate    resources/models/evaluation.json: the quality of the saved models

Without a stage all of them run, in this order. An interrupted training resumes from its last checkpoint. The
recipes of the models in the repository are the constants RECIPE of training/*.py. If other programs run on the
machine, give every process one thread: threads of small networks mostly wait for each other. Each of the models
in the repository was trained by one process with one thread. Two processes can share the batches of the flow,
the longest training, and do 1.4 times as many steps in the same time:

  torchrun --nproc-per-node 2 workflow_scripts/training/train_embedded.py flow --threads 1
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from quantwatt.artifacts.images import to_uint8
from quantwatt.config import experiment
from quantwatt.data import scenes
from quantwatt.jobs.progress import progress
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Sampling
from quantwatt.score import attribute_classifier as attributes
from training import classifier, flow, judge, loop, stages, tokenizer, vae

FAMILY = load_family("sd3")

log = logging.getLogger(__name__)

TRAINING_PICTURES = 40_000
STAGES = ("prompts", "flow", "judge", "attributes", "evaluate")
PROMPTS = {"test": (512, 1, True), "calibration": (64, 2, False)}  # (number, added to the seed, held out)
EVALUATION_SEED = 1000  # added to the seed
RECIPES = {"vae": vae.RECIPE, "flow": flow.RECIPE, "judge": judge.RECIPE, "attributes": classifier.RECIPE}


def training_data(seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures and captions of scenes without the held-out combinations."""
    return scenes.dataset(TRAINING_PICTURES, seed, held=False)


def write_prompts(folder: Path, seed: int) -> None:
    """Writes the test and calibration captions, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (n, added, held) in PROMPTS.items():
        (folder / f"shapes-{name}.txt").write_text("\n".join(scenes.prompts(n, seed + added, held)) + "\n")


def train_flow(models: Path, checkpoints: Path, seed: int, unfinished: bool) -> None:
    """Trains autoencoder, transformer and text encoders and saves the pipeline."""
    images, captions = training_data(seed)
    words = tokenizer.new(seed)
    autoencoder, _ = vae.train(images, checkpoints / "vae.pt", seed)
    checkpoint = checkpoints / "flow.pt"
    if unfinished:
        model = flow.new(words, seed).eval()
        log.info("saving the flow of step %d", loop.load_average(model, checkpoint))
    else:
        cache = checkpoints / "latents.pt"  # encoding takes a minute, and every process needs the latents
        if not cache.exists():
            part = checkpoints / f"latents.{loop.rank_and_size()[0]}.part"
            torch.save(vae.encode(autoencoder, images), part)
            part.replace(cache)
        latents = vae.normalise(autoencoder, torch.load(cache, weights_only=True))
        model, _ = flow.train(latents, captions, words, checkpoint, seed)
    if loop.rank_and_size()[0] == 0:
        # A new tokenizer, because one that has padded a batch would save its padding as a setting.
        flow.pipeline(model, autoencoder, tokenizer.new(seed)).save_pretrained(models / "tiny-sd3")


def train_judge(models: Path, checkpoints: Path, seed: int, unfinished: bool) -> None:
    """Trains and saves the judge."""
    words = tokenizer.new(seed)
    checkpoint = checkpoints / "judge.pt"
    if unfinished:
        unfinished_judge = judge.new(words, seed)
        log.info("saving the judge of step %d", loop.load_average(unfinished_judge, checkpoint))
        model = unfinished_judge.clip
    else:
        model, _ = judge.train(*training_data(seed), words, checkpoint, seed)
    judge.save(model, tokenizer.new(seed), models / "judge")


def train_attributes(models: Path, checkpoints: Path, seed: int, unfinished: bool) -> None:
    """Trains and saves the attribute classifier."""
    checkpoint = checkpoints / "attributes.pt"
    if unfinished:
        model = attributes.AttributeClassifier()
        log.info("saving the classifier of step %d", loop.load_average(model, checkpoint))
    else:
        model, _ = classifier.train(*training_data(seed), checkpoint, seed)
    attributes.save(model, models / "attributes")


def attributes_right(models: Path, images: np.ndarray, captions: list[str]) -> dict[str, float]:
    """The share of images [n, 64, 64, 3] with all attributes of their caption right, by the saved classifier."""
    right, two = attributes.all_right(attributes.load(models / "attributes"), images, captions)
    return {"one_object": right[~two].mean(), "two_objects": right[two].mean(), "all": right.mean()}


def generated(models: Path, prompts: list[str]) -> tuple[dict, np.ndarray]:
    """The sampling of the embedded experiment, and the images of its baseline for the prompts, with the same seeds."""
    embedded = experiment.load_experiment("embedded")
    sampling = Sampling.from_settings(embedded["samplings"]["steps-20"])
    pipeline = FAMILY.load(embedded["models"]["tiny-sd3"], models / "tiny-sd3")
    batch, drawn = sampling.batch_size, []
    for first in progress(range(0, len(prompts), batch), description="generating", unit="batch"):
        part = prompts[first : first + batch]
        seeds = [sampling.seed + first + i for i in range(len(part))]
        drawn.append(to_uint8(FAMILY.generate(pipeline, part, seeds, sampling), first))
    return {key: getattr(sampling, key) for key in ("steps", "guidance", "seed")}, np.concatenate(drawn)


def evaluate(models: Path, prompts: Path, seed: int, n: int) -> dict:
    """Evaluation of the saved models, on at most `n` prompts and 4 `n` renders."""
    from diffusers import AutoencoderKL  # after `training` has declared the operators that torchvision lacks

    renders, captions = scenes.dataset(4 * n, seed + EVALUATION_SEED, held=True)
    asked = (prompts / "shapes-test.txt").read_text().splitlines()[:n]
    critic = judge.Judge(models / "judge")
    autoencoder = AutoencoderKL.from_pretrained(models / "tiny-sd3", subfolder="vae")
    sampling, images = generated(models, asked)

    def clip_score(pictures, texts):
        return 100 * float((critic.pictures(pictures) * critic.captions(texts)).sum(-1).mean())

    return {
        "size_mb": {name: stages.folder_mb(models / name) for name in ("tiny-sd3", "judge", "attributes")},
        "autoencoder_psnr_db": vae.reconstruction_db(autoencoder, renders[:n]),
        "classifier_right_on_renders": attributes_right(models, renders, captions),
        "generated_right": attributes_right(models, images, asked),
        "generated_with": {"images": len(images), **sampling},
        "judge_ranks_right_caption_first": judge.ranking(critic, renders, captions, seed + EVALUATION_SEED),
        "clip_score": {"renders": clip_score(renders, captions), "generated": clip_score(images, asked)},
    }


def main(argv: list[str] | None = None) -> None:
    """Runs the chosen stages."""
    made = stages.parser(__doc__, STAGES)
    made.add_argument("--prompts", type=Path, default=Path("resources/prompts"), help="folder of the captions")
    made.add_argument(
        "--unfinished", action="store_true", help="do not train; save the averaged weights of the checkpoint"
    )
    made.add_argument("--images", type=int, default=512, help="prompts to evaluate (default: all 512)")
    chosen = stages.begin(made, argv)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    asked = chosen.stage or STAGES
    if "prompts" in asked:
        write_prompts(chosen.prompts, chosen.seed)
    trainings = {"flow": train_flow, "judge": train_judge, "attributes": train_attributes}
    for name, run in trainings.items():
        if name in asked:
            run(chosen.models, chosen.checkpoints, chosen.seed, chosen.unfinished)
    if "evaluate" in asked:
        figures = {"seed": chosen.seed} | evaluate(chosen.models, chosen.prompts, chosen.seed, chosen.images)
        record = partial(stages.training_records, chosen.checkpoints, RECIPES)
        stages.write_evaluation(chosen.models / "evaluation.json", figures, record)


if __name__ == "__main__":
    main()
