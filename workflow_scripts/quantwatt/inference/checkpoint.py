"""From a quantized checkpoint back into a pipeline.

from quantwatt import load_pipeline
pipeline = load_pipeline("results/embedded/checkpoints/tiny-sd3/gptq-w4a8")
images = pipeline.generate(["a large red circle on a white background"], seeds=[0], steps=20)
"""

import contextlib
import sys
from pathlib import Path

from quantwatt import registry
from quantwatt.artifacts import manifest, shards
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.inference import kernel_choice
from quantwatt.models import offload
from quantwatt.models.families import load_family

# On a GPU products are tuned, too: what follows an integer product then becomes a part of it.
COMPILE = {"cpu": {}, "cuda": {"mode": "max-autotune-no-cudagraphs"}}


def compute_of(manifest_path, device):
    """("real" | "simulated" | "unsupported", kernel names or None, reason or None) of a checkpoint on a device."""
    details = manifest.read_json(manifest_path)
    compute, computed, reason = kernel_choice.compute_of(details["layers"], device)
    return compute, _names(computed, details), reason


def _names(computed, details):
    """The kernels of `kernels.compute_of` in one string."""
    if computed is None:
        return None
    return (", ".join(computed) or "torch linear") + (", compiled" if _is_compiled(details) else "")


def _is_compiled(details):
    return details.get("settings", {}).get("compile", False)


def load_pipeline(checkpoint, device="cpu", simulate=False):
    """Load a checkpoint into a pipeline that computes in its formats, and print with which kernels.

    Args:
        checkpoint: the checkpoint's folder or its manifest.json.
        device: "cpu" or "cuda".
        simulate: take 16-bit products of the formats' values where the device has no kernel.
    Returns:
        QuantizedPipeline.
    Raises:
        DataError: a file is missing, truncated or corrupted, or the checkpoint holds no model.
        Unsupported: the library that stored it cannot compute on this device, or nothing can and it is not to be
            simulated.
    """
    path = Path(checkpoint)
    path = path / "manifest.json" if path.is_dir() else path
    details = manifest.read_json(path)
    if details["status"] != "ok":
        raise DataError(f"{path}: holds no model: {details['status']}, {details['reason']}.")
    check_settings(details["layers"], path)
    model = details["model_settings"]
    family, location = load_family(model["family"]), manifest.PROJECT / details["location"]
    compute, computed, reason = kernel_choice.compute_of(details["layers"], device)
    if compute == "unsupported":
        raise Unsupported(reason)
    if compute == "simulated" and not simulate:
        raise Unsupported(f"{path}: {reason}; simulate=True gives its values, not its speed.")
    denoiser = _load_denoiser(family, path, details, location, device, simulate=compute == "simulated")
    if denoiser is None and _is_compiled(details):
        denoiser = family.load_denoiser(model, location)
    how = f"simulated, {reason}" if computed is None else _shares(computed, denoiser, details)
    print(f"{path.parent} on {device}: {how}", file=sys.stderr)
    pipeline = offload.place(family.load(model, location, denoiser), model, device)
    if _is_compiled(details):
        denoiser.compile(**COMPILE[device])
    autocast = details.get("settings", {}).get("autocast")
    return QuantizedPipeline(pipeline, family, compute, _names(computed, details), reason, device, autocast)


def check_settings(layers, path):
    """Refuse a checkpoint whose weights have other settings than their formats do now: an earlier version's keys.

    Args:
        layers: of the checkpoint's manifest; path: the manifest's, for the message.
    Raises:
        DataError: a layer has a key that its format's schema does not know, or lacks a width or size of groups.
    """
    for layer in layers.values():
        weights = layer["weights"]
        known = registry.schema(f"formats/{weights['format']}")["properties"]
        if other := sorted(weights.keys() - known) + sorted({"bits", "group_size"} & known.keys() - weights.keys()):
            raise DataError(
                f"{path}: another version of quantwatt has made it (its {weights['format']} weights differ in the key "
                f"'{other[0]}'); quantize the model anew."
            )


def _shares(computed, denoiser, details):
    """How many layers each kernel computes, in words."""
    dtype = details["model_settings"]["dtype"]
    if denoiser is None:
        return f"all layers in {dtype}"
    import torch

    kinds, quantized = (torch.nn.Linear, torch.nn.Conv2d), details["layers"]
    others = sum(isinstance(m, kinds) and name not in quantized for name, m in denoiser.named_modules())
    said = [f"{count} {'layers' if count > 1 else 'layer'} by {kernel}" for kernel, count in computed.items()]
    said = [*said, f"{others} unquantized in {dtype}"] if others else said
    return ", ".join(said) + (", compiled" if _is_compiled(details) else "")


def _load_denoiser(family, path, details, location, device, simulate):
    """The denoiser with its quantized layers in place, on the device; None for the baseline, which the pipeline loads.

    Layer by layer: what it takes is the denoiser's own size and one layer.
    """
    if not details["files"]:
        return None
    import torch

    from quantwatt.models import splits

    manifest.verify_files(path, details["files"])
    dtype = getattr(torch, details["model_settings"]["dtype"])
    denoiser, layers = family.meta_denoiser(location), details["layers"]
    splits.restore(denoiser, layers)
    modules = dict(denoiser.named_modules())
    stored = shards.Shards(path.parent, details["files"])
    rest = set(stored.path)
    for name, layer in layers.items():
        shape = (layer["out_features"], layer["in_features"])
        fits = name in modules and tuple(modules[name].weight.flatten(1).shape) == shape
        if not fits or not stored.path.keys() >= {f"{name}.{part}" for part in layer["parts"]}:
            raise DataError(f"{path.parent}: not this model's weights (at {name}).")
        parts = [*layer["parts"], *(["bias"] if f"{name}.bias" in stored.path else [])]
        # No name for what is read: it would stay until the next layer's is there, too.
        built = _layer(layer, {part: stored.read(f"{name}.{part}") for part in parts}, dtype, device, simulate)
        denoiser.set_submodule(name, built)
        rest -= {f"{name}.{part}" for part in parts}
    rest = {name: stored.read(name, device) for name in sorted(rest)}
    missing, unexpected = denoiser.load_state_dict(rest, strict=False, assign=True)
    missing = [name for name in missing if not any(name.startswith(f"{layer}.") for layer in layers)]
    if missing and hasattr(denoiser, "tie_weights"):
        denoiser.tie_weights()
        missing = [name for name in missing if denoiser.get_parameter(name).is_meta]
    if missing or unexpected:
        raise DataError(f"{path.parent}: not this model's weights (at {(missing + unexpected)[0]}).")
    return denoiser.eval()


def _layer(layer, state, dtype, device, simulate):
    """One quantized layer of a checkpoint, on the device, of its stored parts and its bias."""
    from quantwatt.formats.convolution import Convolution
    from quantwatt.formats.library import library_of
    from quantwatt.formats.quantized_weight import QuantizedWeight, load_format
    from quantwatt.inference import linear

    bias = state.pop("bias", None)
    if library := library_of(layer["weights"]):
        return library.restore(state, layer, bias, dtype, device)
    weight_format = load_format(layer["weights"])
    quantized = QuantizedWeight.from_state(state, weight_format, layer["in_features"])
    kind = linear.SimulatedLinear if simulate else kernel_choice.kernel_for(layer, device)[0].Layer
    geometry = Convolution.from_settings(layer)
    return kind.build(quantized, weight_format, layer["activations"], bias, dtype, geometry).to(device)


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

    @property
    def censor(self):
        """None, "not loaded" or "loaded": the network by which a pipeline blackens images, where it has one."""
        return getattr(self.pipeline, "censor", None)

    def modules(self):
        """The networks that it is made of: a text model's one, an image pipeline's several."""
        import torch

        parts = getattr(self.pipeline, "components", None) or vars(self.pipeline)
        return [part for part in parts.values() if isinstance(part, torch.nn.Module)]

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
        from quantwatt.artifacts.images import to_uint8

        settings = self._settings({**(sampling or {}), **options})
        with self._autocasting():
            images = self.family.generate(self.pipeline, prompts, seeds, settings)
        return to_uint8(images, first)

    def _settings(self, sampling):
        """A sampling with the defaults of the family, and the size that the pipeline says; of texts there are none."""
        settings = dict(self.family.DEFAULTS)
        if hasattr(self.pipeline, "default_sample_size"):
            size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
            settings |= {"negative_prompt": "", "height": size, "width": size}
        return {**settings, **sampling}
