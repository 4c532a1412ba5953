"""Measure how much images and denoiser outputs degrade when one or several layers are rounded.

The float model generates its images first, while observers record the range of every layer's input. Then layers are
replaced by simulated (fake-quantized) ones and the same images are generated again. Results depend neither on which
layers a process measures nor on their order.

Where the sensitivity has ranges of steps, a layer is replaced in one range at a time. The noise of the denoiser's
outputs then adds up over ranges to that of all steps, because every call has the inputs of the float trajectory.
"""

import contextlib
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quantwatt.allocate.allocation import first_tokens
from quantwatt.allocate.rounding import RoundedLayer, megabytes
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import finite
from quantwatt.artifacts.sensitivity_table import METRICS, ranges_of
from quantwatt.formats import convolution
from quantwatt.formats.convolution import Convolution
from quantwatt.inference import scheduled
from quantwatt.inference.scheduled import ScheduledLayer
from quantwatt.models import offload, splits
from quantwatt.models.sampling import Sampling
from quantwatt.quantize.observers import Range
from quantwatt.quantize.streams import hooks, moved, tensors
from quantwatt.score.metrics.psnr import psnr
from quantwatt.score.metrics.ssim import ssim

if TYPE_CHECKING:
    from quantwatt.models.family import ImageFamily

LEAST_NOISE = 2.0**-48  # lower bound of the noise, about float32's rounding: an exact output has 144 dB


@dataclass
class Batch:
    """Prompts of one batch, and the float model's images and denoiser calls.

    images: uint8 [images, height, width, 3]; calls: [(args, kwargs)] of the denoiser; targets: [output] of each call;
    spans: [range of steps] of each call.
    """

    prompts: Sequence[str]
    seeds: list[int]
    images: np.ndarray | None = None
    calls: list[tuple[Any, Any]] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)


class Probe:
    """A float pipeline whose layers can be replaced by simulated layers.

    family: the model's family; model: its manifest; entry: a completed sensitivity; layers: {name: description} of the
        layers to measure, as `quantwatt.allocate.allocation.tried` returns.
    inputs: {layer: elements of its input for one image and call}, filled by `draw_float`.
    spans: the ranges of steps of the table's column `range`; span: the range of the step that is computed.
    """

    def __init__(
        self,
        family: "ImageFamily",
        model: Mapping[str, Any],
        entry: Mapping[str, Any],
        layers: Mapping[str, Mapping[str, Any]],
        device: str = "cpu",
    ):
        self.family, self.layers, self.device = family, layers, device
        self.sampling = Sampling.from_settings(entry)
        location = manifest.PROJECT / model["location"]
        denoiser = family.load_denoiser(model["settings"], location)
        splits.split(denoiser, splits.of_layers(model["layers"], layers))
        self.pipeline = offload.place(family.load(model["settings"], location, denoiser), model["settings"], device)
        self.denoiser = denoiser.eval()
        self.keep_first = first_tokens(layers, entry)
        self.floats: dict[str, Any] = {name: denoiser.get_submodule(name) for name in layers}
        self.spans, self.span = ranges_of(entry), 0
        if entry["ranges"]:
            scheduled.follow(self.pipeline.scheduler, entry["ranges"], self._enter)
        self.formats: dict[str, list[Mapping[str, Any]]] = {name: [{} for _ in self.spans] for name in layers}
        self.ranges, self.inputs, self.batches = {}, {}, []

    def draw_float(self, prompts: Sequence[str]) -> None:
        """Generate the float model's images, and store the inputs and outputs of its denoiser.

        Raises:
            DataError: generating the images does not use a layer.
        """
        size, seed = self.sampling.batch_size, self.sampling.seed
        handles = [module.register_forward_pre_hook(self._watch(name)) for name, module in self.floats.items()]
        with hooks(handles):
            for first in range(0, len(prompts), size):
                texts = prompts[first : first + size]
                batch = Batch(texts, [seed + first + i for i in range(len(texts))])
                with self._calls() as calls:
                    batch.images = self._images(batch)
                batch.calls, batch.targets, batch.spans = (list(part) for part in zip(*calls, strict=True))
                self.batches.append(batch)
        if unseen := [name for name in self.layers if name not in self.inputs]:
            raise DataError(f"layer {unseen[0]}: generating images does not use it; exclude it from the sensitivity.")

    def _watch(self, name):
        """Return a hook that updates the range of a layer's input, and stores its size per sample."""

        def watch(module, args):
            self.inputs[name] = args[0][0].numel()
            inputs = args[0][:, 1:] if name in self.keep_first else args[0]
            tokens = convolution.positions(inputs, Convolution.of(module))
            self.ranges.setdefault(name, Range(tokens.shape[1])).observe(tokens)

        return watch

    def _enter(self, span):
        """Let all layers compute as in a range of steps."""
        self.span = span
        scheduled.enter(scheduled.layers_of(self.denoiser), span)

    @contextlib.contextmanager
    def _calls(self, keep=None):
        """Collect ((args, kwargs), output, range) of the first `keep` calls of the denoiser, or of all, on the CPU."""
        calls = []

        def note(module, args, kwargs, output):
            if keep is None or len(calls) < keep:
                calls.append((moved((args, kwargs), "cpu"), moved(plain(output), "cpu"), self.span))

        with hooks([self.denoiser.register_forward_hook(note, with_kwargs=True)]):
            yield calls

    def _images(self, batch):
        """Generate uint8 images; NaN becomes black, because a layer that breaks the model is a valid result here."""
        images = self.family.generate(self.pipeline, batch.prompts, batch.seeds, self.sampling)
        return (np.nan_to_num(images, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)

    def scores(self, metrics: Collection[str] = METRICS, span: int | None = None) -> dict[str, float | None]:
        """Score the current denoiser against the float model: {metric: value}, None for all other METRICS.

        Args:
            metrics: names.
            span: the only range of steps in which it differs from the float model; None: any.


        ssim, psnr: means over images; image_error: mean squared error of images in 0..1, computed with either of them.
        noise: sum (p - t)^2 / sum t^2 of the denoiser's outputs p and the float outputs t, on the inputs of the float
        trajectory; sqnr: the same in dB. Values that are not finite are None.
        """
        scores = dict.fromkeys((*METRICS, "image_error"))
        drawn = [None] * len(self.batches)
        if {"ssim", "psnr"}.intersection(metrics):
            images, drawn = [], []
            for batch in self.batches:
                with self._calls(keep=1) as first:  # the first call has the same input as in the float trajectory
                    images += zip(self._images(batch), batch.images, strict=True)
                drawn.append(first[0][1])
            scores["psnr"] = float(np.mean([psnr(*pair) for pair in images]))
            scores["ssim"] = float(np.mean([ssim(*pair) for pair in images])) if "ssim" in metrics else None
            scores["image_error"] = float(np.mean([np.square((a.astype(float) - b) / 255).mean() for a, b in images]))
        if {"sqnr", "noise"}.intersection(metrics):
            scores["noise"] = finite(self._noise(drawn, span))
            scores["sqnr"] = None if scores["noise"] is None else -10 * math.log10(max(scores["noise"], LEAST_NOISE))
        return scores

    @functools.cached_property
    def unchanged(self) -> dict[str, float | None]:
        """Return the scores of the float model itself."""
        return self.scores()

    @torch.no_grad()
    def _noise(self, drawn, only):
        """Return sum (p - t)^2 / sum t^2 over all calls.

        Args:
            drawn: the output of each batch's first call, or None.
            only: the range of steps whose calls differ from the float model's; None: any.
        """
        missed = whole = 0.0
        for batch, first in zip(self.batches, drawn, strict=True):
            for index, (call, target, span) in enumerate(zip(batch.calls, batch.targets, batch.spans, strict=True)):
                if only not in (None, span):
                    output = target
                else:
                    output = first if index == 0 and first is not None else self._run(call, span)
                for actual, expected in zip(tensors(output), tensors(target), strict=True):
                    missed += (actual.double() - expected.double()).square().sum().item()
                    whole += expected.double().square().sum().item()
        return missed / whole

    def _run(self, call, span):
        self._enter(span)
        args, kwargs = moved(call, self.device)
        return moved(plain(self.denoiser(*args, **kwargs)), "cpu")

    def replace(self, name: str, formats: Mapping[str, Any], span: int | None = None) -> None:
        """Replace a layer of the denoiser by its rounding in some formats, or, without formats, by the float layer.

        Args:
            span: the range of steps in which it has these formats; None: all.
        """
        self.formats[name] = [formats if span in (None, index) else f for index, f in enumerate(self.formats[name])]
        layers = []
        for index, of_span in enumerate(self.formats[name]):
            known = self.formats[name].index(of_span)
            layers.append(layers[known] if known < index else self._layer(name, of_span))
        alike = all(layer is layers[0] for layer in layers)
        self.denoiser.set_submodule(name, layers[0] if alike else ScheduledLayer(layers, range(len(layers))))

    def _layer(self, name, formats):
        """Return a layer in some formats; without formats the float layer."""
        layer = self.floats[name]
        return (
            RoundedLayer(layer, formats, self.ranges[name], name in self.keep_first) if any(formats.values()) else layer
        )

    def replace_all(self, formats: Mapping[str, Mapping[str, Any]], span: int | None = None) -> None:
        """Replace several layers, {layer: formats}; layers that have these formats already are skipped."""
        for name, layer_formats in formats.items():
            if layer_formats != self.formats[name][span or 0]:
                self.replace(name, layer_formats, span)

    def row(
        self,
        name: str,
        candidate: str,
        formats: Mapping[str, Any],
        metrics: Collection[str] = METRICS,
        span: int | None = None,
    ) -> dict[str, Any]:
        """Return a row of the sensitivity table: one layer alone in a candidate's formats, scored by some metrics.

        Args:
            span: the range of steps in which it has these formats; None: all.
        """
        formats = {"weights": None, "activations": None, **formats}
        if any(formats.values()):
            self.replace(name, formats, span)
            scores = self.scores(metrics, span)
            self.replace(name, {})
        else:
            scores = self.unchanged
        return {
            "layer": name,
            "candidate": candidate,
            "range": span,
            **{metric: scores[metric] if metric in metrics else None for metric in METRICS},
            "inputs": self.inputs[name],
            "megabytes": megabytes(self.floats[name].weight, formats["weights"]),
        }


def plain(output: Any) -> Any:
    """Convert a denoiser's output to tensors and tuples; some denoisers return a special mapping."""
    return output.to_tuple() if hasattr(output, "to_tuple") else output
