"""The paired protocol against itself: one denoiser in both places, whose ratio is 1 if the protocol is right."""

import torch

from benchmarks.gpu import random_denoiser, stages
from benchmarks.gpu.denoisers import BASELINE
from quantwatt.measuring.callables import measure

DENOISER = "sd35-medium"
GOAL = 0.01  # largest distance of the ratio's interval from 1
SETTINGS = {
    "true": {"warmup_s": 5, "precision": 0.005, "blocks": 4, "steady_s": 0},
    "tiny": {"warmup_s": 0.1, "precision": 0, "limit_s": 0.5, "blocks": 2, "block_s": 0.1, "steady_s": 0},
}


def run(record) -> None:
    """The stage."""
    model, _, _ = random_denoiser.build(DENOISER, record.size, BASELINE, record.device)
    inputs = random_denoiser.inputs_of(DENOISER, record.size, model, 1, record.device)

    def call():
        with torch.no_grad():
            model(**inputs)

    limit = {} if record.size == "tiny" else {"limit_s": max(record.left() - 15, 20)}
    metering = stages.metering(record.meter)
    wattages = {"idle_w": metering.idle_w, "full_w": metering.full_w}
    found = measure(call, call, record.meter, record.device, 1, **SETTINGS[record.size], **limit, **wattages)
    ratios = {"seconds": found.latency_ratio, "energy_j": found.energy_ratio}
    record.keep(
        denoiser=DENOISER, latency_s=found.latency_s, energy_j=found.energy_j, energy_reason=found.energy_reason,
        meter=found.meter, estimated=found.estimated, ratios=ratios, pairs=found.pairs,
        within_goal={name: ratio and max(abs(bound - 1) for bound in ratio) <= GOAL for name, ratio in ratios.items()},
    )  # fmt: skip
