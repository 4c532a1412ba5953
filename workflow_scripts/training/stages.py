"""Common parts of the scripts that train the embedded models in stages: command line and evaluation file."""

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from quantwatt.artifacts import manifest
from training.loop import Recipe

log = logging.getLogger(__name__)


def parser(description: str, stages: tuple[str, ...], unnamed: str = "all of them") -> argparse.ArgumentParser:
    """Parser of stages, seed and folders; `unnamed` describes the stages that run if none is given."""

    def stage(name):
        if name not in stages:
            raise argparse.ArgumentTypeError(f"unknown stage {name}; choose from {', '.join(stages)}")
        return name

    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("stage", nargs="*", type=stage, help=f"any of {', '.join(stages)}; {unnamed} if none is given")
    made.add_argument("--seed", type=int, default=1, help="seed of data and weights (default: 1)")
    made.add_argument("--models", type=Path, default=Path("resources/models"), help="where models are saved")
    made.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("results/embedded-training"),
        help="where unfinished trainings are kept (default: results/embedded-training)",
    )
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    return made


def begin(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the arguments, then set up logging and threads."""
    chosen = made.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(chosen.threads)
    return chosen


def training_record(checkpoint: Path, recipe: Recipe, previous: dict) -> dict:
    """Recipe, steps and CPU seconds of a training; `previous` if its checkpoint no longer exists."""
    if not checkpoint.exists():
        return previous
    state = torch.load(checkpoint, weights_only=True)
    return asdict(recipe) | {"steps_done": state["step"], "cpu_s": round(state["cpu_s"])}


def training_records(checkpoints: Path, recipes: dict[str, Recipe], previous: dict) -> dict:
    """{checkpoint name: `training_record`} of every training."""
    return {
        name: training_record(checkpoints / f"{name}.pt", recipe, previous.get(name, {}))
        for name, recipe in recipes.items()
    }


def write_evaluation(target: Path, figures: dict, record: Callable[[dict], dict]) -> None:
    """Writes figures with four decimals, and `record` of the file's previous "training" entry as its new one."""
    previous = json.loads(target.read_text()) if target.exists() else {}
    manifest.write_json(target, rounded(figures) | {"training": record(previous.get("training", {}))})
    log.info("wrote %s", target)


def rounded(value):
    """The figures with four decimals, as plain numbers."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def folder_mb(folder: Path) -> float:
    """Size of the files of a folder, in 10**6 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
