"""What one phase of a text model costs: latency, power, energy and memory, under the names of the study's columns.

Latency is measured without the power sampler, energy afterwards in blocks of its own, as the measure stage has them.
"""

import gc
import time

import numpy as np

from quantwatt.artifacts import manifest
from quantwatt.jobs.progress import progress
from quantwatt.measuring import fresh_process, protocol

TIMES = ("mean_latency", "std_latency", "throughput", "min_latency", "max_latency", "median_latency")
POWER = ("mean_power_w", "std_power_w", "min_power_w", "max_power_w", "median_power_w", "num_power_samples")
ENERGY = ("total_energy_j", "energy_per_inference_j", "energy_per_inference_mj", "inferences_per_joule")
COUNT = "num_inferences_energy"  # that the energy is of
MEMORY = ("allocated_gb", "peak_allocated_gb", "reserved_gb")
METERED = (*POWER, *ENERGY, COUNT)
ALL = (*TIMES, *METERED, *MEMORY)
BLOCKS, BLOCK_S = 4, 10  # of energy: watts are shown after each; readings of a GPU's sensor need seconds


def of_phase(phase, run, iterations, warm_up, items, meter, unavailable, device):
    """Latency, memory, power and energy of one phase, with the reasons of those that are empty.

    Args:
        items: inferences of one run.
        unavailable: why there is only the meter "none", or None.
    """
    synchronize = fresh_process.synchronize_of(device)
    found = latency(run, iterations, warm_up, items, synchronize, phase)
    found |= memory(device)
    reasons = {"std_latency": "one run has no spread"}
    reasons |= dict.fromkeys(MEMORY, "torch counts the memory of GPUs only")
    if meter.name == "none":
        found |= {**dict.fromkeys(METERED), "blocks": []}
        return {**found, "reasons": reasons | dict.fromkeys(METERED, unavailable or meter.stop().fault)}
    # All iterations once more, and at least what a sensor needs.
    block_s = max(BLOCK_S, found["mean_latency"] * iterations / BLOCKS)
    with progress(total=BLOCKS, description=f"{phase}: energy", unit="block") as bar:

        def show(block):
            bar.update(not block.void)
            if block.energy_j is not None:
                bar.set_postfix(watts=f"{block.energy_j / block.seconds:.1f}")

        blocks = protocol.measure_energy(run, meter, block_s, BLOCKS, items, synchronize, after_block=show)
    energy = power_and_energy(blocks)
    return {**found, **energy, "reasons": reasons | energy["reasons"]}


def latency(run, iterations, warm_up, items, synchronize, phase):
    """Seconds of every run, one after the other, without the power sampler; throughput in inferences per second."""
    for _ in progress(range(warm_up), description=f"{phase}: warm-up", unit="run"):
        run()
    synchronize()
    seconds = np.empty(iterations)
    for index in progress(range(iterations), description=f"{phase}: latency", unit="run"):
        before = time.perf_counter()
        run()
        synchronize()
        seconds[index] = time.perf_counter() - before
    return {
        "mean_latency": float(seconds.mean()),
        "std_latency": float(seconds.std(ddof=1)) if iterations > 1 else None,
        "throughput": float(items / seconds.mean()),
        "min_latency": float(seconds.min()),
        "max_latency": float(seconds.max()),
        "median_latency": float(np.median(seconds)),
    }


def power_and_energy(blocks):
    """Power over all samples of the good blocks, and energy per inference, its mean over them, with the interval.

    Args:
        blocks: [measuring.Block] of one process.
    """
    energy, reason = protocol.summarize_energy([blocks], BLOCKS)
    good = protocol.good_blocks(blocks)
    found = {
        **dict.fromkeys(METERED),
        "energy_j": energy,
        "crosscheck": protocol.crosscheck(*(block.trace for block in good)),
        "blocks": [fresh_process.block_row(block) for block in blocks],
    }
    if reason:
        return {**found, "reasons": dict.fromkeys(METERED, reason)}
    found |= {
        "total_energy_j": sum(block.energy_j for block in good),
        "energy_per_inference_j": energy["value"],
        "energy_per_inference_mj": 1000 * energy["value"],
        "inferences_per_joule": 1 / energy["value"] if energy["value"] > 0 else None,
        "num_inferences_energy": sum(block.images for block in good),
    }
    watts = np.concatenate([np.asarray(block.trace.watts, np.float64) for block in good])
    watts = watts[~np.isnan(watts)]
    if len(watts):
        figures = (watts.mean(), watts.std(ddof=1) if len(watts) > 1 else np.nan, watts.min(), watts.max())
        found |= dict(zip(POWER, [*map(manifest.finite, (*figures, np.median(watts))), len(watts)], strict=True))
    reasons = dict.fromkeys(POWER, "the meter took no sample of power, or one")
    return {**found, "reasons": {**reasons, "inferences_per_joule": "the meter counted no energy"}}


def free(device):
    """Let go of what torch keeps on a GPU of earlier work, such as predicting, and count its peak anew."""
    if device == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device):
    """Memory of the GPU as torch counts it, after the latency runs; None on a CPU."""
    if device == "cpu":
        return dict.fromkeys(MEMORY)
    import torch

    counted = (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())
    return {name: bytes_ / 1e9 for name, bytes_ in zip(MEMORY, counted, strict=True)}
