"""Quantized checkpoints: one safetensors file at the format's size, and the way back into a pipeline.

from quantwatt import load_pipeline
pipeline = load_pipeline("results/embedded/checkpoints/tiny-sd3/gptq-w4a8")
images = pipeline.generate(["a large red circle on a white background"], seeds=[0], steps=20)
"""

import contextlib
from pathlib import Path

from quantwatt import kernels, manifest
from quantwatt.families import load_family

WEIGHTS = "weights.safetensors"


def save(folder, denoiser, states, reports, details):
    """Write the denoiser's weights and, last, the manifest.

    Args:
        denoiser: module whose quantized layers have been replaced.
        states, reports: as `quantwatt.sequential.quantize` returns.
        details: further entries of the manifest.
    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    state = {
        name: tensor
        for name, tensor in _stored_once(denoiser.state_dict()).items()
        if not any(name.startswith(f"{layer}.") and name != f"{layer}.bias" for layer in states)
    }
    for name, parts in states.items():
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    manifest.write_tensors(folder / WEIGHTS, state)
    files = manifest.describe_files(folder, [WEIGHTS])
    manifest.write_json(
        folder / "manifest.json",
        {**details, "size_bytes": files[WEIGHTS]["bytes"], "files": files, "layers": reports},
    )


def _stored_once(state):
    """A state without the second names of tensors that stand in it twice: tied weights."""
    first = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
    return {name: state[name] for name in first.values()}


def compute_of(manifest_path, device):
    """("real" | "simulated" | "unsupported", kernel names or None, reason or None) of a checkpoint on a device."""
    return kernels.compute_of(manifest.read_json(manifest_path)["layers"], device)


def load_pipeline(checkpoint, device="cpu"):
    """Load a checkpoint into a pipeline that computes in its formats where the device has kernels.

    Args:
        checkpoint: the checkpoint's folder or its manifest.json.
        device: "cpu" or "cuda".
    Returns:
        QuantizedPipeline.
    Raises:
        DataError: a file is missing, truncated or corrupted, or the checkpoint holds no model.
        Unsupported: the library that stored it cannot compute on this device.
    """
    path = Path(checkpoint)
    path = path / "manifest.json" if path.is_dir() else path
    details = manifest.read_json(path)
    if details["status"] != "ok":
        raise manifest.DataError(f"{path}: holds no model: {details['status']}, {details['reason']}.")
    model = details["model_settings"]
    family, location = load_family(model["family"]), manifest.PROJECT / details["location"]
    compute, kernel, reason = kernels.compute_of(details["layers"], device)
    if compute == "unsupported":
        raise kernels.Unsupported(reason)
    denoiser = _load_denoiser(family, path, details, location, device, simulate=compute == "simulated")
    pipeline = family.load(model, location, denoiser).to(device)
    autocast = details.get("settings", {}).get("autocast")
    return QuantizedPipeline(pipeline, family, compute, kernel, reason, device, autocast)


def _load_denoiser(family, path, details, location, device, simulate):
    """The denoiser with its quantized layers in place; None for the baseline, which the pipeline loads."""
    if not details["files"]:
        return None
    import torch
    from safetensors import safe_open

    from quantwatt import splits

    manifest.verify_files(path, details["files"])
    dtype = getattr(torch, details["model_settings"]["dtype"])
    denoiser, layers = family.meta_denoiser(location), details["layers"]
    splits.restore(denoiser, layers)
    modules = dict(denoiser.named_modules())
    with safe_open(path.parent / WEIGHTS, framework="pt") as file:
        names = set(file.keys())
        for name, layer in layers.items():
            shape = (layer["out_features"], layer["in_features"])
            fits = name in modules and tuple(modules[name].weight.flatten(1).shape) == shape
            if not fits or not names.issuperset(f"{name}.{part}" for part in layer["parts"]):
                raise manifest.DataError(f"{path.parent / WEIGHTS}: not this model's weights (at {name}).")
            state = {part: file.get_tensor(f"{name}.{part}") for part in layer["parts"]}
            bias = file.get_tensor(f"{name}.bias") if f"{name}.bias" in names else None
            names -= {f"{name}.{part}" for part in (*state, "bias")}
            denoiser.set_submodule(name, _layer(layer, state, bias, dtype, device, simulate))
        rest = {name: file.get_tensor(name) for name in names}
    missing, unexpected = denoiser.load_state_dict(rest, strict=False, assign=True)
    missing = [name for name in missing if not any(name.startswith(f"{layer}.") for layer in layers)]
    if missing and hasattr(denoiser, "tie_weights"):
        denoiser.tie_weights()
        missing = [name for name in missing if denoiser.get_parameter(name).is_meta]
    if missing or unexpected:
        raise manifest.DataError(f"{path.parent / WEIGHTS}: not this model's weights (at {(missing + unexpected)[0]}).")
    return denoiser.eval()


def _layer(layer, state, bias, dtype, device, simulate):
    """One quantized layer of a checkpoint."""
    from quantwatt import linear
    from quantwatt.convolution import Convolution
    from quantwatt.formats import QuantizedWeight, load_format
    from quantwatt.formats.library import library_of

    if library := library_of(layer["weights"]):
        return library.restore(state, layer["weights"], layer, bias, dtype, device)
    weight_format = load_format(layer["weights"])
    quantized = QuantizedWeight.from_state(state, weight_format, layer["in_features"])
    kind = "SimulatedLinear" if simulate else kernels.kernel_for(layer, device).layer
    geometry = Convolution.from_settings(layer)
    return getattr(linear, kind).build(quantized, weight_format, layer["activations"], bias, dtype, geometry)


class QuantizedPipeline:
    """A pipeline and how it computes.

    pipeline: the diffusers pipeline itself.
    compute: "real" where every quantized layer runs in its format, else "simulated".
    kernel: names of the kernels, or None.
    reason: why it is simulated, or None.
    """

    def __init__(self, pipeline, family, compute, kernel, reason, device="cpu", autocast=None):
        self.pipeline, self.family = pipeline, family
        self.compute, self.kernel, self.reason = compute, kernel, reason
        self.device, self.autocast = device, autocast

    def predict(self, texts, settings):
        """What a text model says of texts: one mapping per sentence or window, as of its family's `predict`."""
        with self._computing():
            return self.family.predict(self.pipeline, texts, settings)

    def batches(self, texts, sampling, size, count):
        """[(batch, seeds)] as `prepare` takes them, of a text model: `count` batches of `size` sentences or windows."""
        batches = self.family.batches(self.pipeline, texts, sampling, size, count)
        return [(batch, None) for batch in batches]  # nothing is drawn

    def prepare(self, prompts, seeds, sampling):
        """A function that does one batch and leaves the result on the device, for timing."""
        with self._computing():
            return self._within(self.family.prepare(self.pipeline, prompts, seeds, self._settings(sampling)))

    def phases(self, prompts, seeds, sampling):
        """{name: function that does this part of a batch by itself}, in order."""
        with self._computing():
            runs = self.family.phases(self.pipeline, prompts, seeds, self._settings(sampling))
        return {name: self._within(run) for name, run in runs.items()}

    def _within(self, run):
        def within():
            with self._computing():
                return run()

        return within

    @contextlib.contextmanager
    def _computing(self):
        import torch

        with torch.no_grad(), self._autocasting():  # not inference mode: quanto's tensors do not compute in it
            yield

    def _autocasting(self):
        import torch

        return torch.autocast(self.device, getattr(torch, self.autocast)) if self.autocast else contextlib.nullcontext()

    def generate(self, prompts, seeds, sampling=None, first=0, **options):
        """Images of some prompts, one seed each.

        Args:
            sampling: steps, guidance, height, width, negative_prompt, as a sampling of an experiment; `options` are
                the same by keyword and win.
            first: number of the first image in a larger set, for messages.
        Returns:
            [n, height, width, 3] uint8.
        Raises:
            DegenerateImages: the model produced NaN or an image of one single colour.
        """
        from quantwatt.images import to_uint8

        settings = self._settings({**(sampling or {}), **options})
        with self._autocasting():
            images = self.family.generate(self.pipeline, prompts, seeds, settings)
        return to_uint8(images, first)

    def _settings(self, sampling):
        """A sampling with the defaults of the family, and the size that the pipeline says; of texts there are none."""
        settings = dict(getattr(self.family, "DEFAULTS", {}))
        if hasattr(self.pipeline, "default_sample_size"):
            size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
            settings |= {"negative_prompt": "", "height": size, "width": size}
        return {**settings, **sampling}
