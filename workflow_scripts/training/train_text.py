"""Trains the embedded text models from a seed, and evaluates them.

The stages are

  texts        resources/texts/: reviews for test and calibration, and manuals that ship with the running Python
  distilbert   resources/models/tiny-distilbert/: sentiment of reviews that a grammar generates
  gpt2         resources/models/tiny-gpt2/: a language model of the manuals
  evaluate     resources/models/evaluation-tiny-distilbert.json and -tiny-gpt2.json, from the saved models

Without a stage all but `texts` run, in this order: other versions of Python have other manuals, and the results in this
repository are based on the texts in resources/texts/. An interrupted training resumes from its last checkpoint.
"""

import logging
import math
import platform
import shutil
import sys
import sysconfig
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from quantwatt.models.families import load_family
from quantwatt.models.sampling import Reading
from training import manuals, reviews, stages, tiny_distilbert, tiny_gpt2

DISTILBERT, GPT2 = load_family("distilbert"), load_family("gpt2")

log = logging.getLogger(__name__)

STAGES = ("texts", "distilbert", "gpt2", "evaluate")
REVIEWS = {"test": (1000, 1, True), "calibration": (256, 2, False)}  # (number, added to the seed, held out)
FLOAT = {"dtype": "float32"}
READING = Reading(batch_size=32, max_length=128)
FIRST_WINDOWS = 64  # of the test text: a quick check that a model is the one that was evaluated


def write_reviews(folder: Path, seed: int) -> None:
    """Writes the test and calibration reviews."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (n, added, held) in REVIEWS.items():
        rows = zip(*reviews.sentences(n, seed + added, held), strict=True)
        table = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"reviews-{name}.tsv").write_text("\n".join(table) + "\n")


def write_manuals(folder: Path) -> None:
    """Writes the manuals of the running Python, with their licence."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("train", "test"), manuals.split(manuals.documents()), strict=True):
        (folder / f"manuals-{name}.txt").write_text(text, encoding="utf-8")
    shutil.copyfile(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", folder / "LICENSE-python.txt")
    log.info("wrote the manuals of Python %s", platform.python_version())


def save(model, words, folder: Path) -> None:
    """Writes a model and its tokenizer: only the files that AutoModel and AutoTokenizer read."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


@torch.inference_mode()
def evaluate_distilbert(models: Path, texts: Path, seed: int) -> dict:
    """Evaluation of the saved DistilBERT."""
    pipeline = DISTILBERT.load(FLOAT, models / "tiny-distilbert")
    sentences, labels = DISTILBERT.read(texts / "reviews-test.tsv")
    predicted = [item["label"] for item in DISTILBERT.predict(pipeline, sentences, READING)]
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    return {
        "seed": seed,
        "parameters": pipeline.model.num_parameters(),
        "accuracy": right / len(labels),
        "accuracy_of_counting_words": tiny_distilbert.words_alone(seed),
        "held_out_sentences": len(labels),
    }


@torch.inference_mode()
def evaluate_gpt2(models: Path, texts: Path, seed: int) -> dict:
    """Evaluation of the saved GPT-2."""
    pipeline = GPT2.load(FLOAT, models / "tiny-gpt2")
    parts = [GPT2.read(texts / f"manuals-{part}.txt")[0] for part in ("train", "test")]
    items = GPT2.predict(pipeline, parts[1], READING)
    ids = [pipeline.tokenizer(part[0], verbose=False).input_ids for part in parts]
    counted = tiny_gpt2.counted_perplexities(*ids, len(pipeline.tokenizer))
    return {
        "seed": seed,
        "parameters": pipeline.model.num_parameters(),
        "perplexity": perplexity_of(items),
        "perplexity_of_first_windows": perplexity_of(items[:FIRST_WINDOWS]),
        "perplexity_of_a_bigram": counted["bigram"],
        "perplexity_of_a_unigram": counted["unigram"],
        "held_out_tokens": sum(item["tokens"] for item in items),
    }


def perplexity_of(items: list) -> float:
    """Perplexity over all tokens of some windows."""
    return math.exp(sum(item["nll"] for item in items) / sum(item["tokens"] for item in items))


def main(argv: list[str] | None = None) -> None:
    """Runs the chosen stages."""
    made = stages.parser(__doc__, STAGES, unnamed="all but texts")
    made.add_argument("--texts", type=Path, default=Path("resources/texts"), help="folder of the texts")
    chosen = stages.begin(made, argv)
    asked, models, texts, seed = chosen.stage or STAGES[1:], chosen.models, chosen.texts, chosen.seed
    checkpoints = {name: chosen.checkpoints / f"tiny-{name}.pt" for name in ("distilbert", "gpt2")}
    if "texts" in asked:
        write_reviews(texts, seed)
        write_manuals(texts)
    if "distilbert" in asked:
        save(*tiny_distilbert.train(seed, checkpoints["distilbert"])[:2], models / "tiny-distilbert")
    if "gpt2" in asked:
        text = GPT2.read(texts / "manuals-train.txt")[0][0]
        save(*tiny_gpt2.train(text, seed, checkpoints["gpt2"])[:2], models / "tiny-gpt2")
    if "evaluate" in asked:
        evaluations = {
            "distilbert": (evaluate_distilbert, tiny_distilbert.RECIPE),
            "gpt2": (evaluate_gpt2, tiny_gpt2.RECIPE),
        }
        for name, (evaluate, recipe) in evaluations.items():
            target = models / f"evaluation-tiny-{name}.json"
            record = partial(stages.training_record, checkpoints[name], recipe)
            stages.write_evaluation(target, evaluate(models, texts, seed), record)


if __name__ == "__main__":
    main()
