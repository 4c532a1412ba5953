"""What mixed methods choose layers' formats by: one metric for all layers, or one for each group of them."""

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.sensitivity_table import METRICS
from quantwatt.config import methods


def objectives(entries, sensitivity):
    """What methods choose by with a sensitivity, each objective once; the order of methods does not matter.

    Args:
        entries: completed methods; sensitivity: its name.
    Returns:
        [a metric, or {group: metric}]; all metrics where no method uses the sensitivity.
    """
    used = [own["allocation"] for own in entries if methods.is_mixed(own)]
    programs = [program for own in used if own["sensitivity"] == sensitivity for program in own["programs"]]
    found = {manifest.canonical_json(program["objective"]): program["objective"] for program in programs}
    return [found[key] for key in sorted(found)] or list(METRICS)


def metric_of(objective, name, layer, where):
    """The metric that an objective scores a layer by; raises as `group_of`."""
    return objective[group_of(name, layer, where)] if isinstance(objective, dict) else objective


def group_of(name, layer, where):
    """A layer's group, "content" or "quality".

    Raises:
        DataError: the model's family has no groups.
    """
    if "group" not in layer:
        raise DataError(
            f"{where}: layer {name} is of no group, because this family does not say what its content layers are; give "
            "one objective and one list of candidates."
        )
    return layer["group"]
