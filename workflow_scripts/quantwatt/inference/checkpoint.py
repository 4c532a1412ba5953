"""Load a quantized checkpoint into a pipeline.

from quantwatt import load_pipeline
pipeline = load_pipeline("results/embedded/checkpoints/tiny-sd3/gptq-w4a8")
images = pipeline.generate(["a large red circle on a white background"], seeds=[0], steps=20)
"""

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt import registry
from quantwatt.artifacts import component_files, layer_variants, manifest, shards
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.inference import decoding, drawing, kernel_choice
from quantwatt.models import offload
from quantwatt.models.families import load_family
from quantwatt.models.sampling import Drawing, Reading

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quantwatt.models.family import Batch, Run

# On a GPU, matrix products are tuned too: the operations after an integer product are then fused into it.
COMPILE = {"cpu": {}, "cuda": {"mode": "max-autotune-no-cudagraphs"}}


def compute_of(manifest_path: str | Path, device: str) -> tuple[str, str | None, str | None]:
    """Return ("real" | "simulated" | "unsupported", kernel names or None, reason or None) for a checkpoint."""
    details = manifest.read_json(manifest_path)
    if "computes" in details:  # other code quantizes it at load
        return tuple(details["computes"][key] for key in ("compute", "kernel", "reason"))
    compute, computed, reason = kernel_choice.compute_of(component_files.quantized_layers(details), device)
    return compute, _names(computed, details), reason


def _names(computed, details):
    """Join the kernels of `kernel_choice.compute_of` into one string."""
    if computed is None:
        return None
    return (", ".join(computed) or "torch linear") + (", compiled" if _is_compiled(details) else "")


def _is_compiled(details):
    return details.get("settings", {}).get("compile", False)


def load_pipeline(checkpoint: str | Path, device: str = "cpu", simulate: bool = False) -> "QuantizedPipeline":
    """Load a checkpoint into a pipeline that computes in its formats, and print with which kernels.

    Args:
        checkpoint: the checkpoint's folder or its manifest.json.
        device: "cpu" or "cuda".
        simulate: where the device has no kernel, compute 16-bit products of the dequantized (fake-quantized) values.
    Returns:
        QuantizedPipeline.
    Raises:
        DataError: a file is missing, truncated or corrupted, or the checkpoint holds no model.
        Unsupported: the library that stored the checkpoint cannot compute on this device, a layer has no kernel and
            `simulate` is False, or the method's cache does not work with this denoiser.
    """
    path = Path(checkpoint)
    path = path / "manifest.json" if path.is_dir() else path
    details = manifest.read_json(path)
    if details["status"] != "ok":
        raise DataError(f"{path}: holds no model: {details['status']}, {details['reason']}.")
    if "computes" in details:
        return _load_live(path, details, device, simulate)
    quantized = component_files.quantized_layers(details)
    check_settings(quantized, path)
    model = details["model_settings"]
    family, location = load_family(model["family"]), manifest.PROJECT / details["location"]
    compute, computed, reason = kernel_choice.compute_of(quantized, device)
    if compute == "unsupported":
        raise Unsupported(reason)
    if compute == "simulated" and not simulate:
        raise Unsupported(f"{path}: {reason}; simulate=True computes its values, but not at its speed.")
    simulated = compute == "simulated"
    denoiser = _load_network(family, path, details, location, device, simulated)
    parts = _load_components(family, path, details, location, device, simulated)
    if denoiser is None and _is_compiled(details):
        denoiser = family.load_denoiser(model, location)
    how = f"simulated, {reason}" if computed is None else _shares(computed, {"": denoiser, **parts}, details)
    print(f"{path.parent} on {device}: {how}", file=sys.stderr)
    loaded = family.load(model, location, denoiser, **parts)
    pipeline = offload.place(_with_adapters(family, loaded, details), model, device)
    if details.get("schedule"):
        from quantwatt.inference import scheduled

        ranges = [entry["steps"] for entry in details["schedule"]]
        switched = scheduled.layers_of(denoiser)
        scheduled.require_all_steps(pipeline)
        scheduled.follow(pipeline.scheduler, ranges, functools.partial(scheduled.enter, switched))
    if _is_compiled(details):
        denoiser.compile(**COMPILE[device])
    method = details.get("settings", {})
    cache = None
    if "cache" in method:  # of an image family
        cache = drawing.Cache(pipeline, family.denoiser(pipeline), method["cache"])  # ty: ignore[missing-attribute]
    return QuantizedPipeline(
        pipeline, family, compute, _names(computed, details), reason, device, method.get("autocast"), cache,
        method.get("steps"),
    )  # fmt: skip


def _with_adapters(family, pipeline, details):
    """Put the adapters that a method keeps beside the denoiser's layers."""
    if details.get("adapters"):
        import torch

        from quantwatt.models import adapters

        dtype = getattr(torch, details["model_settings"]["dtype"])
        adapters.keep(family.denoiser(pipeline), details["adapters"], dtype)
    return pipeline


def _load_live(path, details, device, simulate):
    """Load a pipeline that other code quantizes, as the checkpoint's loader says."""
    from quantwatt.inference import live
    from quantwatt.inference.loaders import Source

    compute, kernel, reason = (details["computes"][key] for key in ("compute", "kernel", "reason"))
    if compute == "simulated" and not simulate:
        raise Unsupported(f"{path}: {reason}; simulate=True computes its values, but not at its speed.")
    source, model, method = details["source"], details["model_settings"], details["settings"]
    folder = manifest.PROJECT / source["location"]
    manifest.verify_files(path, source["files"], folder)
    family, entry = load_family(model["family"]), Source(folder, tuple(source["files"]), method["checkpoint"])
    built = live.load(entry, family, model, manifest.PROJECT / details["location"], device)
    pipeline = offload.place(_with_adapters(family, built, details), model, device)
    print(f"{path.parent} on {device}: {reason or kernel}", file=sys.stderr)
    if _is_compiled(details):
        family.denoiser(pipeline).compile(**COMPILE[device])  # ty: ignore[missing-attribute]
    cache = None
    if "cache" in method:
        cache = drawing.Cache(pipeline, family.denoiser(pipeline), method["cache"])  # ty: ignore[missing-attribute]
    return QuantizedPipeline(
        pipeline, family, compute, kernel, reason, device, method.get("autocast"), cache, method.get("steps")
    )


def check_settings(layers: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Refuse a checkpoint of another version, whose weights have other settings than their formats have now.

    Args:
        layers: of the checkpoint's manifest; path: the manifest's, for the message.
    Raises:
        DataError: a layer has a key that its format's schema does not define, or lacks `bits` or `group_size`.
    """
    for _, layer in layer_variants.flat(layers):
        weights = layer["weights"]
        known = registry.schema(f"formats/{weights['format']}")["properties"]
        if other := sorted(weights.keys() - known) + sorted({"bits", "group_size"} & known.keys() - weights.keys()):
            raise DataError(
                f"{path}: another version of quantwatt wrote it (its {weights['format']} weights differ in the key "
                f"'{other[0]}'); quantize the model again."
            )


def _shares(computed, networks, details):
    """Say how many layers each kernel computes, of {component, "" for the denoiser: network, or None as stored}."""
    dtype = details["model_settings"]["dtype"]
    if not any(networks.values()):
        return f"all layers in {dtype}"
    import torch

    kinds, quantized = (torch.nn.Linear, torch.nn.Conv2d), component_files.quantized_layers(details)
    others = sum(
        isinstance(m, kinds) and f"{part and part + '/'}{name.partition('.variants.')[0]}" not in quantized
        for part, network in networks.items()
        for name, m in (network.named_modules() if network else ())
    )
    shares = [f"{count} {'layers' if count > 1 else 'layer'} by {kernel}" for kernel, count in computed.items()]
    shares = [*shares, f"{others} unquantized in {dtype}"] if others else shares
    return ", ".join(shares) + (", compiled" if _is_compiled(details) else "")


def _load_components(family, path, details, location, device, simulate):
    """{name: network on the device} of the components that are quantized beside the denoiser."""
    made = details.get("components") or {}
    if not made:
        return {}
    from quantwatt.models import components

    return {
        name: _load_network(
            components.load(family, details["model_settings"], location, name),
            path.parent / name / path.name,
            {**part, "model_settings": details["model_settings"]},
            *(location, device, simulate),
        )
        for name, part in made.items()
    }


def _load_network(family, path, details, location, device, simulate):
    """Load a network with its quantized layers on the device; None for the baseline, which the pipeline loads.

    It loads layer by layer, so the peak memory is the network's size plus one layer.

    Args:
        family: `quantwatt.models.network.Network`; its weights are next to `path`, as `details` says.
    """
    if not details["files"]:
        return None
    import torch

    from quantwatt.inference import scheduled
    from quantwatt.models import splits

    manifest.verify_files(path, details["files"])
    dtype = getattr(torch, details["model_settings"]["dtype"])
    denoiser, layers = family.meta_network(location), details["layers"]
    splits.restore(denoiser, layers)
    modules = dict(denoiser.named_modules())
    stored = shards.Shards(path.parent, details["files"])
    rest = set(stored.path)
    for name, layer in layers.items():
        shape = (layer["out_features"], layer["in_features"])
        fits = name in modules and tuple(modules[name].weight.flatten(1).shape) == shape
        parts = layer_variants.parts(layer)
        kept = {"weight": "weight"} if layer_variants.keeps_weight(layer) else {}
        bias = {"bias": "bias"} if f"{name}.bias" in stored.path else {}
        named = {f"{name}.{part}" for part in {**kept, **bias}}.union(
            *({f"{name}.{part}" for part in of_variant.values()} for of_variant in parts)
        )
        if not fits or not stored.path.keys() >= named:
            raise DataError(f"{path.parent}: not this model's weights (at {name}).")
        built = []
        for variant, of_variant in zip(layer_variants.variants(layer), parts, strict=True):
            # The tensors read get no name: a variable would keep them in memory while the next layer is read.
            built.append(_layer(variant, _read(stored, name, of_variant | bias), dtype, device, simulate))
        if kept:
            modules[name].load_state_dict(_read(stored, name, kept | bias, device), assign=True)
            built.append(modules[name].requires_grad_(False))
        if "ranges" in layer:
            built = [scheduled.ScheduledLayer(built, [-1 if used is None else used for used in layer["ranges"]])]
        denoiser.set_submodule(name, built[0])
        rest -= named
    rest = {name: stored.read(name, device) for name in sorted(rest)}
    missing, unexpected = denoiser.load_state_dict(rest, strict=False, assign=True)
    missing = [name for name in missing if not any(name.startswith(f"{layer}.") for layer in layers)]
    if missing and hasattr(denoiser, "tie_weights"):
        denoiser.tie_weights()
        missing = [name for name in missing if denoiser.get_parameter(name).is_meta]
    if missing or unexpected:
        raise DataError(f"{path.parent}: not this model's weights (at {(missing + unexpected)[0]}).")
    return denoiser.eval()


def _read(stored, name, parts, device="cpu"):
    """Read a layer's tensors, {part: its name behind the layer's}."""
    return {part: stored.read(f"{name}.{key}", device) for part, key in parts.items()}


def _layer(layer, state, dtype, device, simulate):
    """Build one quantized layer on the device from its stored parts and its bias."""
    from quantwatt.formats.convolution import Convolution
    from quantwatt.formats.library import library_of
    from quantwatt.formats.quantized_weight import QuantizedWeight, load_format
    from quantwatt.inference import hadamard, linear

    bias = state.pop("bias", None)
    if library := library_of(layer["weights"]):
        return library.restore(state, layer, bias, dtype, device)
    weight_format = load_format(layer["weights"])
    quantized = QuantizedWeight.from_state(state, weight_format, layer["in_features"])
    kind = linear.SimulatedLinear if simulate else kernel_choice.kernel_for(layer, device)[0].Layer  # ty: ignore
    geometry = Convolution.from_settings(layer)
    built = kind.build(quantized, weight_format, layer["activations"], bias, dtype, geometry).to(device)
    hadamard.attach(built)
    return built


class QuantizedPipeline:
    """A pipeline and the way it computes.

    pipeline: the wrapped pipeline, of diffusers for images.
    compute: "real" where every quantized layer computes in its format, else "simulated".
    kernel: names of the kernels, or None.
    reason: why it is simulated, or None.
    steps: the method's own number of steps, or None.
    """

    def __init__(
        self,
        pipeline: Any,
        family: Any,
        compute: str,
        kernel: str | None,
        reason: str | None,
        device: str = "cpu",
        autocast: str | None = None,
        cache: drawing.Cache | None = None,
        steps: int | None = None,
    ):
        self.pipeline, self.family = pipeline, family
        self.compute, self.kernel, self.reason = compute, kernel, reason
        self.device, self.autocast = device, autocast
        self.cache, self.steps = cache, steps

    @property
    def censor(self) -> str | None:
        """State of the safety checker, which blackens images: None (there is none), "not loaded" or "loaded"."""
        return getattr(self.pipeline, "censor", None)

    @property
    def calls(self) -> dict[str, Any] | None:
        """{"unit", "asked", "skipped"}: how many calls the cache has skipped so far; None without a cache."""
        return dict(self.cache.calls) if self.cache else None

    def modules(self) -> "dict[str, torch.nn.Module]":
        """Return the pipeline's networks by name: one of a text model, several of an image pipeline."""
        import torch

        parts = getattr(self.pipeline, "components", None) or vars(self.pipeline)
        return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}

    def predict(self, texts: Sequence[str], sampling: Reading) -> list[dict[str, Any]]:
        """Return a text model's predictions: one mapping per sentence or window, as its family's `predict` does."""
        with self._computing(sampling):
            return self.family.predict(self.pipeline, texts, sampling)

    def batches(self, texts: Sequence[str], sampling: Reading, size: int, count: int) -> "list[tuple[Batch, None]]":
        """Return [(batch, seeds)] for `prepare` of a text model: `count` batches of `size` sentences or windows."""
        batches = self.family.batches(self.pipeline, texts, sampling, size, count)
        return [(batch, None) for batch in batches]  # no random numbers are needed

    def prepare(self, prompts: "Batch", seeds: Sequence[int] | None, sampling: Drawing | Reading) -> "Run":
        """Return a function that computes one batch and leaves the result on the device, for timing."""
        asked = self._completed(sampling)
        with self._computing(asked):
            return self._within(self.family.prepare(self.pipeline, prompts, seeds, asked), asked)

    def phases(self, prompts: "Batch", seeds: Sequence[int] | None, sampling: Drawing | Reading) -> "dict[str, Run]":
        """Return {name: function that computes this phase of a batch alone}, in order."""
        asked = self._completed(sampling)
        with self._computing(asked):
            runs = self.family.phases(self.pipeline, prompts, seeds, asked)
        return {name: self._within(run, asked) for name, run in runs.items()}

    def _within(self, run, asked):
        def within():
            with self._computing(asked):
                return run()

        return within

    @contextlib.contextmanager
    def _computing(self, asked):
        import torch

        # not inference_mode: quanto's tensors cannot compute in it
        with torch.no_grad(), self._autocasting(), self._caching(asked):
            yield

    def _caching(self, asked):
        return self.cache.drawing(asked) if self.cache else contextlib.nullcontext()

    def _autocasting(self):
        import torch

        return torch.autocast(self.device, getattr(torch, self.autocast)) if self.autocast else contextlib.nullcontext()

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Drawing | None = None,
        first: int = 0,
        **options: Any,
    ) -> "np.ndarray":
        """Generate one image per prompt, with one seed each.

        Args:
            sampling: `quantwatt.models.sampling.Drawing`, such as a sampling of an experiment.
            first: number of the first image in a larger set, for messages.
            options: steps, guidance, height, width, negative_prompt as keywords, which override `sampling` and the
                method's steps.
        Returns:
            [n, height, width, 3] uint8.
        Raises:
            DegenerateImages: the model produced NaN or an image of a single colour.
        """
        from quantwatt.artifacts.images import to_uint8

        asked = replace(self._completed(sampling or Drawing()), **options)
        with decoding.explaining(self.pipeline), self._autocasting(), self._caching(asked):
            return to_uint8(self.family.generate(self.pipeline, prompts, seeds, asked), first)

    def _completed(self, sampling):
        """A drawing with the method's steps, the family's defaults and the pipeline's image size, where it has them."""
        if self.steps is not None:
            sampling = replace(sampling, steps=self.steps)
        defaults = dict(self.family.DEFAULTS)
        if hasattr(self.pipeline, "default_sample_size"):
            size = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
            defaults |= {"height": size, "width": size}
        return replace(sampling, **{key: value for key, value in defaults.items() if getattr(sampling, key) is None})
