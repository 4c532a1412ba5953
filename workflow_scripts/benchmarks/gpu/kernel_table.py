"""The speed and the error of every kernel on the layers of Stable Diffusion 3.5 Medium, and of the libraries'."""

import torch

from benchmarks import layer_speed, peers

SHAPES = {"true": ((1536, 6144), (1536, 1536), (6144, 1536), (2432, 9728)), "tiny": ((64, 128),)}
TOKENS = {"true": (1, 1357, 4096), "tiny": (1, 20)}
BRIEFLY = {"rounds": 3, "turn_s": 0.05, "limit_s": 0.5, "give_up_s": 4}
LEAST_S = 15  # of a shape, in which kernels are compiled


def run(record) -> None:
    """The stage: a shape after the other; those that are measured already are left out."""
    record.keep(rows=record.found.get("rows", []))
    done = {(row["in_features"], row["out_features"]) for row in record.found["rows"]}
    dtype = layer_speed.computing_type(record.device)
    with torch.no_grad():
        for shape in SHAPES[record.size]:
            if shape in done:
                continue
            if record.size == "true" and record.left() < LEAST_S:
                record.partial("the time was over between two shapes")
                return
            rows = layer_speed.table(
                [shape], TOKENS[record.size], record.device, dtype, others=peers.LIBRARIES, **BRIEFLY
            )
            record.keep(rows=record.found["rows"] + list(rows))
