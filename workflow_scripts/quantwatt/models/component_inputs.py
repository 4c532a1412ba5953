"""Record what a component of the unquantized pipeline receives while it draws calibration prompts.

Text encoders are called before the first denoising step, so that a drawing ends there; the decoder of an autoencoder
reads the latents of a whole drawing. Of a call's arguments tensors alone are kept: the others ask for outputs.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.models import denoiser_inputs
from quantwatt.models.components import Component
from quantwatt.models.families import recording

MASK = "attention_mask"  # of a text encoder's tokens; without it texts are of one length


class _Ended(Exception):
    """Ends a drawing once the component has read all its inputs."""


def record(
    pipeline: Any, name: str, component: Component, denoiser: torch.nn.Module, draw: Callable[[], object]
) -> list[dict[str, torch.Tensor]]:
    """Run `draw` and return the component's inputs, {argument: tensor} of each sample of each call in turn.

    Args:
        name: of the component; denoiser: of the pipeline.
        draw: draws a batch with the pipeline.
    Raises:
        DataError: the pipeline does not call the component, or a call is no batch of samples.
    """
    network, calls = getattr(pipeline, name), []

    def see(named):
        count = recording.samples_of(named)
        if not count:
            raise DataError(f"{name}: its first input is not a batch of samples, so none can be kept.")
        flat = denoiser_inputs.flat(named, count, shared=())
        calls.extend(denoiser_inputs.of_sample(flat, i) for i in range(count))

    watching = _decoding(network, see) if component.decodes else _encoding(network, denoiser, see)
    with watching, contextlib.suppress(_Ended):
        draw()
    if not calls:
        raise DataError(f"{name}: {type(pipeline).__name__} does not call it as a whole, so its inputs are not seen.")
    return calls


@contextmanager
def _decoding(network, see):
    """Call `see` instead of the autoencoder's `decode`."""

    def decode(latents, *args, **kwargs):
        see({"latents": latents})
        raise _Ended

    network.decode = decode
    try:
        yield
    finally:
        del network.decode


@contextmanager
def _encoding(network, denoiser, see):
    """Call `see` before each call of a text encoder, and end the drawing before the first of the denoiser."""

    def encode(module, args, kwargs):
        named = recording.arguments(module, args, kwargs).items()
        see({key: value for key, value in named if isinstance(value, torch.Tensor) and value.ndim > 0})

    def end(module, args):
        raise _Ended

    encoding = network.register_forward_pre_hook(encode, with_kwargs=True)
    with encoding, denoiser.register_forward_pre_hook(end):
        yield


def even(samples: Sequence[dict[str, torch.Tensor]], name: str) -> dict[str, torch.Tensor]:
    """Stack samples to {argument: [samples, ...]}; shorter texts are padded, and their mask excludes the padding.

    Raises:
        DataError: texts without a mask have several lengths.
    """
    lengths = {len(sample["input_ids"]) for sample in samples if "input_ids" in sample}
    if len(lengths) > 1:
        if not all(MASK in sample for sample in samples):
            raise DataError(f"{name}: reads texts of several lengths without a mask, so they make no batches.")
        samples = [{key: _padded(value, max(lengths)) for key, value in sample.items()} for sample in samples]
    return denoiser_inputs.stack(samples)


def _padded(tensor, length):
    missing = length - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor
