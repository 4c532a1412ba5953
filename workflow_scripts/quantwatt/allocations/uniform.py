"""Every layer the same format, except those excluded by name."""

from quantwatt.allocation import matching


def allocate(layers, method, method_name):
    """As `quantwatt.allocation.allocate`."""
    excluded = matching(layers, method["allocation"]["exclude"], f"methods.{method_name}.allocation.exclude")
    formats = {"weights": method["weights"], "activations": method["activations"]}
    return {name: formats for name in layers if name not in excluded}
