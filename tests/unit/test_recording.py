"""Calibration follows the scheduler's steps, however often the scheduler evaluates the denoiser in a step."""

from pathlib import Path

import diffusers
import pytest
import torch

from quantwatt.models.families import load_family
from quantwatt.models.families.recording import evaluation_of
from quantwatt.models.sampling import Calibration
from quantwatt.quantize.calibration import record, strata

STEPS = 8
TINY_SD3 = Path(__file__).parents[2] / "resources/models/tiny-sd3"
# Every scheduler of diffusers that calls the denoiser of an image pipeline: with what settings, and how often.
SCHEDULERS = [
    ("DDIMScheduler", {}, 8),
    ("DDPMScheduler", {}, 8),
    ("EulerDiscreteScheduler", {}, 8),
    ("UniPCMultistepScheduler", {}, 8),
    ("DEISMultistepScheduler", {}, 8),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 8),
    ("DPMSolverSinglestepScheduler", {}, 8),
    ("LCMScheduler", {}, 8),
    ("TCDScheduler", {}, 8),
    ("FlowMatchEulerDiscreteScheduler", {}, 8),
    ("PNDMScheduler", {"skip_prk_steps": True}, 9),
    ("PNDMScheduler", {}, 17),
    ("HeunDiscreteScheduler", {}, 15),
    ("FlowMatchHeunDiscreteScheduler", {}, 15),
    ("KDPM2DiscreteScheduler", {}, 15),
    ("KDPM2AncestralDiscreteScheduler", {}, 15),
]


@pytest.mark.parametrize(("kind", "settings", "evaluations"), SCHEDULERS)
def test_steps_are_spread_over_all_of_a_schedulers_timesteps(kind, settings, evaluations):
    scheduler = getattr(diffusers, kind)(**settings)
    scheduler.set_timesteps(STEPS)
    planned = scheduler.timesteps.tolist()
    assert len(planned) == evaluations
    chosen = [evaluation_of(step, STEPS, planned) for step in range(STEPS)]
    assert chosen == sorted(chosen) and chosen[0] == 0 and planned[chosen[-1]] == planned[-1]
    assert all(planned[place] not in planned[:place] for place in chosen)  # a step's first evaluation
    if len(set(planned)) >= STEPS:
        assert len({planned[place] for place in chosen}) == STEPS
    if len(planned) == STEPS:
        assert chosen == list(range(STEPS))


def test_steps_at_one_rounded_timestep_are_told_apart():
    assert [evaluation_of(step, 4, [999.0, 500.0, 1.0, 1.0]) for step in range(4)] == [0, 1, 2, 3]


@torch.no_grad()
def test_sd3_is_calibrated_to_the_end_of_a_trajectory_of_second_order():
    family = load_family("sd3")
    settings = {"dtype": "float32", "text_encoder_3": False, "max_sequence_length": 16}
    pipeline = family.load(settings, TINY_SD3)
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    entry = Calibration(
        prompts="", steps=STEPS, guidance=3.0, height=32, width=32, batch_size=2, timesteps=4, timesteps_per_prompt=4
    )
    samples, rows = record(family, pipeline, ["a large red circle", "a small blue ring"], entry)
    distinct = list(dict.fromkeys(pipeline.scheduler.timesteps.tolist()))
    expected = [distinct[step] for step in strata(STEPS, 4)]
    assert sorted({row["timestep"] for row in rows}, reverse=True) == expected and expected[-1] == distinct[7]
    assert samples["timestep"].tolist() == [row["timestep"] for row in rows] and len(rows) == 16
