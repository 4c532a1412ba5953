"""What a metric compares, told by its schema: its module imports what Snakemake plans without."""

from quantwatt.registry import schema


def features_of(metric):
    """What extracts the features that it compares: "judge", "classifier", or "distance" for what the experiment has.

    Returns:
        None where it reads images or predictions themselves.
    """
    return schema(f"metrics/{metric}").get("x-features")


def compares_with_reference(metric):
    """Whether it compares with real images."""
    return schema(f"metrics/{metric}").get("x-reference", False)
