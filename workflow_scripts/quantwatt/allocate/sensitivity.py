"""What images and outputs of a denoiser lose when layers are rounded, one alone or several at once.

The float model draws its images first, while the range of every layer's input is watched. Then layers are replaced by
simulated ones and the same images drawn again. Nothing depends on which layers a process tries, nor on their order.
"""

import contextlib
import functools
import math
from dataclasses import dataclass, field

import numpy as np
import torch

from quantwatt.allocate.allocation import first_tokens
from quantwatt.allocate.rounding import RoundedLayer, megabytes
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import finite
from quantwatt.artifacts.sensitivity_table import METRICS
from quantwatt.formats import convolution
from quantwatt.formats.convolution import Convolution
from quantwatt.models import offload, splits
from quantwatt.quantize.observers import Range
from quantwatt.quantize.streams import hooks, moved, tensors
from quantwatt.score.metrics.psnr import psnr
from quantwatt.score.metrics.ssim import ssim

LEAST_NOISE = 2.0**-48  # an exact output counts as one that errs by float32's rounding: 144 dB


@dataclass
class Batch:
    """Prompts drawn at once, and what the float model made of them.

    images: uint8 [images, height, width, 3]; calls: [(args, kwargs)] of the denoiser and what it returned, targets.
    """

    prompts: list
    seeds: list
    images: np.ndarray | None = None
    calls: list = field(default_factory=list)
    targets: list = field(default_factory=list)


class Probe:
    """A float pipeline whose layers can be replaced by simulated ones.

    family, model: of the model, and its manifest; entry: a completed sensitivity; layers: {name: description} of those
        that will be tried, as `quantwatt.allocate.allocation.tried` has them.
    inputs: {layer: elements of its input for one image and call}, known once `draw_float` has run.
    """

    def __init__(self, family, model, entry, layers, device="cpu"):
        self.family, self.entry, self.layers, self.device = family, entry, layers, device
        location = manifest.PROJECT / model["location"]
        denoiser = family.load_denoiser(model["settings"], location)
        splits.split(denoiser, splits.of_layers(model["layers"], layers))
        self.pipeline = offload.place(family.load(model["settings"], location, denoiser), model["settings"], device)
        self.denoiser = denoiser.eval()
        self.keep_first = first_tokens(layers, entry)
        self.floats = {name: denoiser.get_submodule(name) for name in layers}
        self.formats = {name: {} for name in layers}
        self.ranges, self.inputs, self.batches = {}, {}, []

    def draw_float(self, prompts):
        """Draw the float model's images, and remember what its denoiser was given and returned.

        Raises:
            DataError: a layer that the images do not need.
        """
        size, seed = self.entry["batch_size"], self.entry["seed"]
        watching = [module.register_forward_pre_hook(self._watch(name)) for name, module in self.floats.items()]
        with hooks(watching):
            for first in range(0, len(prompts), size):
                asked = prompts[first : first + size]
                batch = Batch(asked, [seed + first + i for i in range(len(asked))])
                with self._calls() as calls:
                    batch.images = self._images(batch)
                batch.calls = [call for call, _ in calls]
                batch.targets = [output for _, output in calls]
                self.batches.append(batch)
        if unseen := [name for name in self.layers if name not in self.inputs]:
            raise DataError(f"layer {unseen[0]}: no image needs it; exclude it from the sensitivity.")

    def _watch(self, name):
        """A hook that adds to the range of a layer's input, and notes its size per sample."""

        def watch(module, args):
            self.inputs[name] = args[0][0].numel()
            inputs = args[0][:, 1:] if name in self.keep_first else args[0]
            tokens = convolution.positions(inputs, Convolution.of(module))
            self.ranges.setdefault(name, Range(tokens.shape[1])).observe(tokens)

        return watch

    @contextlib.contextmanager
    def _calls(self, keep=None):
        """Collect ((args, kwargs), output) of the denoiser's calls, on the CPU; of `keep` calls, or of all."""
        calls = []

        def note(module, args, kwargs, output):
            if keep is None or len(calls) < keep:
                calls.append((moved((args, kwargs), "cpu"), moved(plain(output), "cpu")))

        with hooks([self.denoiser.register_forward_hook(note, with_kwargs=True)]):
            yield calls

    def _images(self, batch):
        """uint8 images; what is not a number is black, because a layer that breaks the model is a result here."""
        images = self.family.generate(self.pipeline, batch.prompts, batch.seeds, self.entry)
        return (np.nan_to_num(images, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)

    def scores(self, metrics=METRICS):
        """Scores of the denoiser as it is now, against the float model: {metric: value}, and None for other METRICS.

        ssim, psnr: means over images, and with them image_error, the mean squared error of images in 0..1.
        noise: sum (p - t)^2 / sum t^2 of the denoiser's outputs on the float trajectory's inputs; sqnr: the same in
        dB. What is not finite is None.
        """
        found = dict.fromkeys((*METRICS, "image_error"))
        drawn = [None] * len(self.batches)
        if {"ssim", "psnr"}.intersection(metrics):
            images, drawn = [], []
            for batch in self.batches:
                with self._calls(keep=1) as first:  # whose input is the float trajectory's
                    images += zip(self._images(batch), batch.images, strict=True)
                drawn.append(first[0][1])
            found["psnr"] = float(np.mean([psnr(*pair) for pair in images]))
            found["ssim"] = float(np.mean([ssim(*pair) for pair in images])) if "ssim" in metrics else None
            found["image_error"] = float(np.mean([np.square((a.astype(float) - b) / 255).mean() for a, b in images]))
        if {"sqnr", "noise"}.intersection(metrics):
            found["noise"] = finite(self._noise(drawn))
            found["sqnr"] = None if found["noise"] is None else -10 * math.log10(max(found["noise"], LEAST_NOISE))
        return found

    @functools.cached_property
    def unchanged(self):
        """Scores of the float model itself."""
        return self.scores()

    @torch.no_grad()
    def _noise(self, drawn):
        """sum (p - t)^2 / sum t^2 over all calls; `drawn` are the outputs of each batch's first call, where known."""
        missed = whole = 0.0
        for batch, first in zip(self.batches, drawn, strict=True):
            for index, (call, target) in enumerate(zip(batch.calls, batch.targets, strict=True)):
                output = first if index == 0 and first is not None else self._run(call)
                for found, expected in zip(tensors(output), tensors(target), strict=True):
                    missed += (found.double() - expected.double()).square().sum().item()
                    whole += expected.double().square().sum().item()
        return missed / whole

    def _run(self, call):
        args, kwargs = moved(call, self.device)
        return moved(plain(self.denoiser(*args, **kwargs)), "cpu")

    def replace(self, name, formats):
        """Put a layer into the denoiser, rounded to nearest in some formats; without any the float layer itself."""
        layer, self.formats[name] = self.floats[name], formats
        if any(formats.values()):
            layer = RoundedLayer(layer, formats, self.ranges[name], name in self.keep_first)
        self.denoiser.set_submodule(name, layer)

    def replace_all(self, formats):
        """Likewise several layers at once, {layer: formats}; those that have them already are left alone."""
        for name, own in formats.items():
            if own != self.formats[name]:
                self.replace(name, own)

    def row(self, name, candidate, metrics=METRICS):
        """A row of the sensitivity table: one layer alone in a candidate's formats, scored by some metrics."""
        formats = {"weights": None, "activations": None} | self.entry["candidates"][candidate]
        if any(formats.values()):
            self.replace(name, formats)
            scores = self.scores(metrics)
            self.replace(name, {})
        else:
            scores = self.unchanged
        return {
            "layer": name,
            "candidate": candidate,
            **{metric: scores[metric] if metric in metrics else None for metric in METRICS},
            "inputs": self.inputs[name],
            "megabytes": megabytes(self.floats[name].weight, formats["weights"]),
        }


def plain(output):
    """What a denoiser returned as tensors and tuples: some return a mapping of their own kind."""
    return output.to_tuple() if hasattr(output, "to_tuple") else output
