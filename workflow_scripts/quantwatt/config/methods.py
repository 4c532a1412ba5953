"""What kind of method a completed entry is: told by its keys and by the schemas of its parts."""

from quantwatt.registry import schema


def is_mixed(method):
    """Whether its layers get formats of their own."""
    return method["allocation"].get("name") == "mixed"


def is_quantized(method):
    """Whether it quantizes anything."""
    return method["weights"] is not None or is_mixed(method)


def is_library(method):
    """Whether a library rounds, stores and computes its weights (its format's schema says so)."""
    return bool(method["weights"]) and schema(f"formats/{method['weights']['format']}").get("x-library", False)


def is_external(method):
    """Whether its solver runs in an environment of its own (its schema says so)."""
    return bool(method["solver"]) and schema(f"solvers/{method['solver']['name']}").get("x-external", False)


def needs_calibration(method):
    """Whether a completed method's solver, a transform (their schemas say so) or its activations need calibration."""
    changed = [
        *method["allocation"].get("overrides", {}).values(),
        *method["allocation"].get("candidates", {}).values(),
    ]
    inputs = [method["activations"], *(formats.get("activations") for formats in changed)]
    if any(activations and not activations["dynamic"] for activations in inputs):
        return True
    plugins = [f"transforms/{transform['name']}" for transform in method["transforms"]]
    if method["solver"] and not is_external(method):
        plugins.append(f"solvers/{method['solver']['name']}")
    return any(schema(plugin).get("x-needs-calibration", False) for plugin in plugins)
