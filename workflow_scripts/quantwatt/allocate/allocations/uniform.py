"""Every layer the same format, except those that are named: left in 16 bit, or in a format that differs."""

from quantwatt.allocate.allocation import matching


def allocate(layers, method, method_name):
    """As `quantwatt.allocate.allocation.allocate`; where several overrides match a layer, the last wins."""
    allocation, where = method["allocation"], f"methods.{method_name}.allocation"
    formats = {"weights": method["weights"], "activations": method["activations"]}
    found = dict.fromkeys(layers, formats)
    for pattern, changed in allocation["overrides"].items():
        for name in matching(layers, [pattern], f"{where}.overrides"):
            found[name] = {**found[name], **changed}
    excluded = matching(layers, allocation["exclude"], f"{where}.exclude")
    return {name: found[name] for name in layers if name not in excluded}
