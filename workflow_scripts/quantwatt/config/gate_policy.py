"""What a policy of the gate may name; a schema checks its keys and values."""

from collections.abc import Collection, Mapping
from typing import Any

from quantwatt.config import metric_entries

NAMED = {"models": "model", "methods": "method", "samplings": "sampling"}  # {key of a policy: what it lists}


def wrong(
    policy: Mapping[str, Any], names: Mapping[str, Collection[str]], baseline: str | None, scored: Collection[str]
) -> str | None:
    """What is wrong with a policy's names, with its key first, or None.

    Args:
        policy: complete; names: {key of NAMED: all names that there are}; scored: names of metrics.
        baseline: the unquantized method, which is no method to judge.
    """
    metrics = metric_entries.shown()
    for key, what in NAMED.items():
        for name in policy[key] or ():
            if name not in names[key]:
                return f"{key}: there is no {what} '{name}'; there are {', '.join(names[key])}."
    if policy["methods"] == [baseline]:
        return f"methods: '{baseline}' is what the others are held against; name another."
    for name, entry in policy["quality"].items():
        if name not in metrics:
            return f"quality: '{name}' is no metric; one of {', '.join(metrics)}."
        if name not in scored:
            return f"quality: {name} is not scored; one of {', '.join(scored) or 'none'}."
        if metrics[name].paired and "limit" not in entry:
            return f"quality.{name}: the baseline has no {metrics[name].title} of its own: give a `limit`."
    return None
