"""Trains the embedded consistency model of digits and the digit classifier, and evaluates both.

The only training data are scikit-learn's digits; a seed fixes everything else. The stages are

  classifier   resources/models/digits/: the digit classifier
  model        resources/models/tiny-consistency/: the consistency model
  evaluate     resources/models/evaluation-tiny-consistency.json, from the saved models

Without a stage all of them run, in this order. A training that was interrupted resumes from its last checkpoint.
"""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from quantwatt.artifacts.images import to_uint8
from quantwatt.artifacts.moments import moments
from quantwatt.data import digits
from quantwatt.jobs.progress import progress
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing
from quantwatt.score import digit_classifier
from quantwatt.score.metrics import fid
from training import digit_reader, loop, stages, tiny_consistency

FAMILY = load_family("consistency")

STAGES = ("classifier", "model", "evaluate")
RECIPES = {
    "consistency-ends": tiny_consistency.ENDS,
    "consistency-distillation": tiny_consistency.DISTILLATION,
    "digits": digit_reader.RECIPE,
}
IMAGES, BATCH = 1000, 250  # number of images for every number of steps, and their batch size
STEPS = (1, 2, 4, 8)
FLOAT = {"dtype": "float32", "timesteps": [[22, 0]]}


def draw(pipeline, steps: int, n: int, first_seed: int = 0) -> torch.Tensor:
    """`n` images, image i of digit i modulo 10 from seed `first_seed` + i, as tensors for the classifier."""
    drawn = []
    for first in progress(range(0, n, BATCH), description=f"{steps} steps", unit="batch"):
        numbers = range(first, min(first + BATCH, n))
        asked, seeds = [str(i % digits.CLASSES) for i in numbers], [first_seed + i for i in numbers]
        images = FAMILY.generate(pipeline, asked, seeds, Drawing(steps=steps))
        drawn.append(loop.to_tensor(to_uint8(images, first)))
    return torch.cat(drawn)


def evaluate(models: Path, n: int) -> dict:
    """Evaluation of the saved models, from `n` images for every number of steps."""
    classifier = digit_classifier.load(models / "digits")
    pipeline = FAMILY.load(FLOAT, models / "tiny-consistency")
    held, labels = digits.dataset(held=True)
    seen, known = digits.dataset(held=False)
    held_features, classes = digit_classifier.read(classifier, loop.to_tensor(held))
    drawn_from, seen_moments = (
        moments(digit_classifier.read(classifier, loop.to_tensor(images))[0].numpy())
        for images in (digits.dataset()[0], seen)
    )
    asked = torch.arange(n) % digits.CLASSES
    by_steps = {}
    for steps in STEPS:
        features, read = digit_classifier.read(classifier, draw(pipeline, steps, n))
        by_steps[f"{steps} steps" if steps > 1 else "1 step"] = {
            "accuracy": float((read == asked).float().mean()),
            "frechet_distance": fid.score(features.numpy(), drawn_from, resamples=0).value,
        }
    return {
        "parameters": sum(p.numel() for p in pipeline.unet.parameters()),
        "size_mb": {name: stages.folder_mb(models / name) for name in ("tiny-consistency", "digits")},
        "images": n,
        "generated": by_steps,
        "classifier_right_on_held_out_digits": float((classes.numpy() == labels).mean()),
        "frechet_distance_of_held_out_digits": fid.score(held_features.numpy(), seen_moments, resamples=0).value,
        "held_out_digits": len(held),
        "training_digits": len(known),
    }


def main(argv: list[str] | None = None) -> None:
    """Runs the chosen stages."""
    made = stages.parser(__doc__, STAGES)
    made.add_argument("--images", type=int, default=IMAGES, help="to evaluate for every number of steps")
    chosen = stages.begin(made, argv)
    asked, models, seed = chosen.stage or STAGES, chosen.models, chosen.seed
    data = digits.dataset(held=False)
    if "classifier" in asked:
        digit_classifier.save(digit_reader.train(*data, chosen.checkpoints / "digits.pt", seed)[0], models / "digits")
    if "model" in asked:
        network = tiny_consistency.train(*data, chosen.checkpoints, seed)[0]
        tiny_consistency.pipeline(network).save_pretrained(models / "tiny-consistency")
    if "evaluate" in asked:
        target, figures = models / "evaluation-tiny-consistency.json", {"seed": seed} | evaluate(models, chosen.images)
        stages.write_evaluation(target, figures, partial(stages.training_records, chosen.checkpoints, RECIPES))


if __name__ == "__main__":
    main()
