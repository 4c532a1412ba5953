"""Complete and check the `components` of methods: what is quantized of a pipeline beside its denoiser.

The denoiser's own keys may be written as a component, too, under its name: they are moved to the method, so that both
ways of writing give the same method. A completed method without further components has no key `components`.
"""

from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.config.method_entries import complete_parts
from quantwatt.config.methods import COMPONENTS, is_external, is_mixed
from quantwatt.config.schemas import ConfigurationError, complete
from quantwatt.config.suggestions import nearest
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.models import model_folder
from quantwatt.registry import schema

OF_NETWORK = ("solver", "weights", "activations", "transforms", "allocation")  # keys that a component has, too


def with_denoiser(
    entry: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], file: str, where: str
) -> dict[str, Any]:
    """Return a method's entry with the denoiser's component, if it has one, written as keys of the method.

    Args:
        entry: as read; models: completed.
    Raises:
        ConfigurationError: a model lacks a component, or the denoiser is said twice.
    """
    entry = dict(entry)
    components = entry.get(COMPONENTS)
    if not isinstance(components, Mapping):
        return entry
    for model, settings in models.items():
        _check_names(components, model, settings, file, f"{where}.{COMPONENTS}")
    denoisers = [name for name in components if name in _denoisers(models)]
    if not denoisers:
        return entry
    if len(denoisers) > 1 or (twice := [key for key in OF_NETWORK if key in entry]):
        other = f"{COMPONENTS}.{denoisers[1]}" if len(denoisers) > 1 else twice[0]
        raise ConfigurationError(
            f"{file}: {where}.{other}: {COMPONENTS}.{denoisers[0]} says it, too; drop one of both."
        )
    of_denoiser = complete(
        components[denoisers[0]] or {}, schema("component"), file, f"{where}.{COMPONENTS}.{denoisers[0]}"
    )
    others = {name: value for name, value in components.items() if name != denoisers[0]}
    return {**entry, **of_denoiser, COMPONENTS: others or None}


def _denoisers(models):
    known = [known_components(settings) for settings in models.values()]
    return {found[0] for found in known if found} or set(model_folder.DENOISERS)


def _check_names(components, model, settings, file, where):
    """Refuse the name of a component that a model is known not to have."""
    if schema(f"families/{settings['family']}").get("x-kind") == "text":
        raise ConfigurationError(f"{file}: {where}: '{model}' is one network without components; drop the key.")
    known = known_components(settings)
    if known is None:
        return
    for name in components:
        if name in model_folder.left_out(settings):
            raise ConfigurationError(f"{file}: {where}.{name}: models.{model} leaves it out ({name}: false).")
        if name not in (known[0], *known[1]):
            has = ", ".join([known[0], *known[1]])
            raise ConfigurationError(
                f"{file}: {where}.{name}: model '{model}' has no such component (it has {has})"
                f"{nearest(name, known[1])}."
            )


def known_components(settings: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return (the denoiser's name, names of the other networks) of a model before it is fetched; None where unknown.

    Args:
        settings: a completed model entry, of an image family.
    """
    of_family, path = schema(f"families/{settings['family']}"), settings.get("path")
    if path and (ROOT / path / model_folder.PIPELINE).is_file():
        try:
            return model_folder.networks(ROOT / path, settings)
        except (DataError, OSError):
            return None  # `check_references` says what is wrong with the folder
    return (of_family["x-denoiser"], of_family["x-components"]) if "x-denoiser" in of_family else None


def complete_components(method: dict[str, Any], file: str, where: str) -> dict[str, Any]:
    """Complete the components of a method whose other keys are complete; return the method."""
    entries = method.pop(COMPONENTS, None)
    if not entries:
        return method
    completed = {}
    for name, entry in sorted(entries.items()):
        at = f"{where}.{COMPONENTS}.{name}"
        component = complete(entry or {}, schema("component"), file, at)
        if is_mixed(component):
            raise ConfigurationError(f"{file}: {at}.allocation.name: 'mixed' is of the denoiser's layers; use uniform.")
        if component["weights"] is None:
            raise ConfigurationError(
                f"{file}: {at}.weights: missing, so that nothing is quantized; drop the component."
            )
        completed[name] = complete_parts(component, file, at)
        _check_supported(completed[name], file, at)
    return method | {COMPONENTS: completed}


def _check_supported(component, file, where):
    """Refuse solvers and transforms that know denoisers alone."""
    name = component["solver"]["name"]
    if is_external(component) or schema(f"solvers/{name}").get("x-by-block"):
        raise ConfigurationError(
            f"{file}: {where}.solver.name: '{name}' solves denoisers alone; rtn, hqq, gptq and qronos solve any "
            "component."
        )
    for number, transform in enumerate(component["transforms"]):
        settings = schema(f"transforms/{transform['name']}")
        if "x-marks" in settings or "x-takes-apart" in settings or transform.get("fold"):
            raise ConfigurationError(
                f"{file}: {where}.transforms.{number}: '{transform['name']}' is for layers of denoisers; drop it here."
            )
