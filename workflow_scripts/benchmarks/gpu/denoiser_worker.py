"""One configuration of a denoiser in a process of its own: it is prepared once, and measured turn by turn on request.

Each line of stdin is a task as JSON, {"do": "prepare" | "turn", "images", "compiled", ...}; each line of stdout is its
answer, with "status" and "reason". What fails, such as a format that a library does not take, is an answer.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any

import torch

from benchmarks.gpu import random_denoiser, sensor, stages
from benchmarks.layer_speed import own_words
from quantwatt.inference import checkpoint
from quantwatt.measuring import instruments, protocol
from quantwatt.measuring.module_memory import module_memory_bytes

RECOMPILES = 64  # blocks of one class that differ, and numbers of images


class Worker:
    """The model, and its eager and compiled calls."""

    def __init__(self, name: str, size: str, configuration: str, device: str, meter: str):
        """Build the model on the device.

        Raises:
            Unsupported: the device cannot compute the format.
        """
        self.name, self.size, self.device = name, size, device
        self.synchronize = instruments.synchronize_of(device)
        self.meter, self.energy_reason = instruments.choose_meter(stages.metering(meter), None, device)
        self.model, self.kernel, blocks = random_denoiser.build(name, size, configuration, device)
        self.weights_mb = module_memory_bytes([self.model]) / 1e6
        plain = {block: self.model.get_submodule(block) for block in blocks}
        self.blocks = {False: plain}  # {compiled: {name of a block: how it is called}}
        self.inputs: dict[int, dict[str, Any]] = {}

    def call(self, images: int, compiled: bool):
        """Return a function that calls the denoiser once for a number of images.

        Blocks are compiled one by one, as diffusers's compile_repeated_blocks does: equal blocks share one program, so
        that compiling takes a minute and not ten.
        """
        if compiled not in self.blocks:
            torch._dynamo.config.recompile_limit = RECOMPILES
            self.blocks[True] = {
                name: torch.compile(block, **checkpoint.COMPILE[self.device])
                for name, block in self.blocks[False].items()
            }
        for name, block in self.blocks[compiled].items():
            self.model.set_submodule(name, block)
        if images not in self.inputs:
            self.inputs = {images: random_denoiser.inputs_of(self.name, self.size, self.model, images, self.device)}
        inputs = self.inputs[images]

        def run():
            with torch.no_grad():
                return self.model(**inputs)[0]

        return run

    def prepare(self, images: int, compiled: bool) -> dict[str, Any]:
        """Call it twice, which compiles and tunes it, and look at its output.

        Returns:
            {"kernel", "weights_mb", "peak_mb" of a call, "prepare_s", "finite": whether the output is}.
        """
        start, run = time.perf_counter(), self.call(images, compiled)
        run()
        self.synchronize()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        outputs = run()
        self.synchronize()
        peak_mb = instruments.peak_memory_of(self.device)()["peak_mb"]
        finite = all(bool(torch.isfinite(image).all()) for image in outputs)
        return {"kernel": self.kernel, "weights_mb": self.weights_mb, "peak_mb": peak_mb, "finite": finite,
                "prepare_s": time.perf_counter() - start}  # fmt: skip

    def turn(self, images: int, compiled: bool, block_s: float) -> dict[str, Any]:
        """Measure one block of calls.

        Returns:
            {"seconds" of a call, "energy_j" of a call or None, "watts", "energy_reason", "meter", "estimated", "calls",
            "integral_j" of a call or None}.
        """
        block = protocol.measure_block(self.call(images, compiled), self.meter, block_s, 1, self.synchronize)
        seconds = block.seconds / block.images
        watts, reason = sensor.steady_watts(block.trace), self.energy_reason or block.trace.fault
        integral_j = None if block.integral_j is None else block.integral_j / block.images
        return {"seconds": seconds, "energy_j": None if watts is None else watts * seconds, "watts": watts,
                "integral_j": integral_j, "energy_reason": reason, "meter": self.meter.name,
                "estimated": self.meter.estimated, "calls": block.images}  # fmt: skip


def work(name: str, size: str, configuration: str, device: str, meter: str) -> None:
    """Answer tasks until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print to stdout
    worker = None
    with contextlib.ExitStack() as stack:
        for line in sys.stdin:
            task = json.loads(line)
            try:
                if worker is None:
                    worker = Worker(name, size, configuration, device, meter)
                    stack.callback(worker.meter.close)
                answer = {"status": "ok", "reason": None, **getattr(worker, task.pop("do"))(**task)}
            except Exception as refused:  # noqa: BLE001  (a library or compiler may raise anything, which is a result)
                answer = {"status": "failed", "reason": f"{type(refused).__name__}: {own_words(refused)}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    work(*sys.argv[1:])
