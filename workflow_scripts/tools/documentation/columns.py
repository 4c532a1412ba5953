"""What each column of the tables means, in a sentence: of the code's own lists of columns, none more and none less."""

from collections.abc import Iterable

from quantwatt.report import categories, equal_bits, layer_table, method_pairs, recommendation, tables

NAMES = {
    "model": "Name of the model in the experiment.",
    "method": "Name of the method.",
    "sampling": "Name of the sampling.",
    "metric": "Name of the metric.",
    "device": "Name of the CPU or GPU that was measured.",
    "device_id": "Tells one board from another of the same name: a hash of its UUID.",
    "n_images": "How many images, or texts, were scored.",
    "weight_bits": "Stored bits a weight, with scales, over the quantized layers.",
    "activation_bits": "Bits of an input, over the layers whose inputs are quantized.",
    "value": "The score.",
    "low": "Lower end of its 95 % interval.",
    "high": "Upper end of its 95 % interval.",
    "margin": "Largest difference of a ratio from 1 that is called equal.",
}
SUMMARY = NAMES | {
    "status": "`ok`; `oom`, `unsupported` and others: the stage that failed ended so.",
    "reason": "Why the status is not `ok`.",
    "compute": "`real`: kernels compute in the format. `simulated`: values are the format's, time and energy are not.",
    "kernel": "The kernels that computed.",
    "weight_format": "The weights' format; empty where layers or steps have their own.",
    "size_mb": "Weights of the denoiser as they are stored, in megabytes.",
    "latency_s": "Seconds an image: the median of the runs, in the mean over processes.",
    "energy_j": "Joules an image, or an inference.",
    "memory_mb": "Peak memory of a process that holds the method alone.",
    "meter": "What read the energy.",
    "energy_estimated": "Whether that meter estimates.",
    "unit": "What energy is counted for: `image` or `inference`.",
    "solver": "The solver, or the library that quantized.",
    "features": "The network whose features FID, KID and other distances compare.",
    "baseline": "Whether this row is the unquantized method.",
    "device_fake": "Whether a stand-in of a board was read, as tests do.",
    "latency_p10_s": "The fastest tenth of the runs took at most this long.",
    "latency_p90_s": "Nine of ten runs took at most this long.",
    "mean_w": "Mean power while it ran.",
    "idle_w": "Power of the idle device, with the models loaded.",
    "energy_net_j": "Joules an image above those of the idle device.",
    "n_blocks": "Blocks that count.",
    "n_processes": "Processes that were measured; intervals are over them.",
    "n_pairs": "Pairs of a block of the method and one of the baseline.",
    "n_disturbed": "Of these, the pairs beside which other programs computed.",
    "in_pairs": "Whether one process held the method and the baseline.",
    "known": "Whether both ratios were known to the `precision` asked for when measuring ended.",
    "memory_source": "What read the memory.",
    "model_mb": "Tensors of the loaded pipeline.",
    "latency_reason": "Why there is no time.",
    "energy_reason": "Why there is no energy.",
    "memory_reason": "Why there is no memory.",
    "ratio_reason": "Why there is no ratio of energy.",
    "energy_ratio": "Energy over the baseline's, measured in turns with it.",
    "latency_ratio": "Time over the baseline's, measured in turns with it.",
    "verdict": "What the interval of the energy's ratio says ([verdicts](../measuring.md#verdicts)).",
    "latency_verdict": "What the interval of the time's ratio says.",
    "energy_control": "Energy of the baseline over itself, by the same protocol: what the machine alone does.",
    "latency_control": "Time of the baseline over itself, by the same protocol.",
    "energy_cpu_package_j": "Joules an image of the CPU's package beside those of a GPU, where they can be read.",
    "energy_dram_j": "Joules an image of the memory, where they can be read.",
    "tokens_per_s": "Tokens a second of a text model's decoding.",
    "energy_per_token_j": "Joules a token of a text model's decoding.",
    "carbon_g": "Grams of CO2 equivalent an image, by `carbon_g_per_kwh`.",
    "seed": "Seed of the first image.",
    "replicate_of": "The first sampling that differs from this one by its seed alone.",
    "steps": "Denoising steps.",
    "steps_of": "The first sampling that differs from this one by its number of steps alone.",
    "allocation": "`uniform`, or `mixed` where layers or steps have formats of their own.",
    "sensitivity": "The sensitivity that a mixed allocation chooses by.",
    "quantize_s": "Seconds of calibrating and quantizing.",
    "quantize_energy_j": "Joules of calibrating and quantizing.",
    "quantize_energy_estimated": "Whether the meter of those estimates.",
    "quantize_energy_reason": "Why there are none.",
    "break_even_images": "Images after which the energy of quantizing is saved.",
    "cache": "The cache that the method draws with.",
    "method_steps": "The method's own number of steps.",
    "skipped": "Share of the calls of blocks or layers that the cache skipped.",
}
LAYERS = NAMES | {
    "layer": "Name of the layer in the denoiser.",
    "error_before": "Relative error of rounding to nearest, without transforms.",
    "relative_error": "Relative error of the method.",
    "error_of": "What the errors are of: outputs on which inputs, or weights; of two kinds they are not comparable.",
    "damping": "What the solver added to the Hessian's diagonal, over its mean.",
    "fallback": "What the layer was rounded by instead of the solver, and why.",
    "seconds": "Of solving.",
    "energy_j": "Joules of solving.",
    "value_bits": "Bits of a weight, without scales.",
    "tokens": "Calibration tokens that the solver saw.",
    "in_features": "Inputs of the layer; fewer tokens than these are warned of.",
    "held_out_error": "Error of the solver's weights on tokens held out of the fit.",
    "held_out_rounding": "Error of rounding to nearest on the same tokens.",
    "ranges": "Numbers of the ranges of steps in which the layer has these formats; empty: all.",
}
SENSITIVITY = NAMES | {
    "sensitivity": "Name of the sensitivity.",
    "layer": "The one layer that was quantized.",
    "group": "`content` or `quality`; empty where the family tells none apart.",
    "candidate": "The candidate that it was in.",
    "metric": "The metric that the objective uses for the layer.",
    "value": "Its value.",
    "range": "Number of the range of steps in which alone it was quantized.",
    "steps": "Those steps, in words.",
} | layer_table.SENSITIVITIES  # fmt: skip
PAIRS = NAMES | {
    "other": "The method that it is compared with.",
    "energy_ratio": "Energy of `method` over that of `other`.",
    "latency_ratio": "Time of `method` over that of `other`.",
    "cost_reason": "Why a ratio is empty.",
}
RANKED = NAMES | {
    "bits": "Stored bits a weight of the group, rounded to an eighth.",
    "rank": "Place in the group, the best first.",
    "format": "Format of weights and inputs.",
    "solver": "The solver.",
    "transforms": "The transforms, in their order.",
    "best": "The best method of the group.",
    "best_of_solver": "The best of those with the same solver and transforms.",
}
CHANGES = NAMES | {
    "part": "What differs: `format`, `solver` or `transforms`.",
    "before": "It before the change.",
    "after": "It after the change.",
    "pairs": "Pairs of methods that differ in it alone.",
    "better": "Of these, pairs in which the second is better.",
    "worse": "Pairs in which it is worse.",
    "undecided": "Pairs that are not told apart.",
}
CATEGORIES = NAMES | {
    "category": "The category of the prompts, a column of their table.",
    "n_images": "Images of the category.",
}
RECOMMENDED = NAMES | {
    "taken": "`first`: what to take. `second`: what comes next. Empty: neither.",
    "feasible": "Whether it holds the limits, for sure or not for sure.",
    "certain": "Whether it holds each for sure, by its interval.",
    "limits": "Each limit and whether it is held.",
    "fronts": "The costs of which no method has less at a better quality: `energy`, `time`, `weights`, `memory`.",
    "why": "Why it is taken, or not.",
}
TESTED = {
    "difference": "Its score minus that of what it is held against.",
    "p_value": "Of no difference, for all pairs of the group together (Holm).",
    "verdict": "What that says of the method.",
}


def _tables():
    metrics = list(tables.METRICS.values())
    return {
        "summary.csv": ("One row a cell.", tables.SUMMARY_COLUMNS, SUMMARY),
        "pairs.csv": ("One row for every two methods. Metrics as the experiment has them.",
                      method_pairs.columns(metrics), PAIRS),
        "formats.csv": ("Methods at equal stored bits, the best first.", equal_bits.RANKED, RANKED),
        "changes.csv": ("What a change of one part of a method does.", equal_bits.CHANGES, CHANGES),
        "categories.csv": ("Scores by the category of the prompt.", categories.COLUMNS, CATEGORIES),
        "layers.csv": ("One row for every layer of a method.", layer_table.COLUMNS, LAYERS),
        "sensitivity.csv": ("One row for every layer and candidate.", layer_table.SENSITIVITY_COLUMNS, SENSITIVITY),
        "recommendation.csv": ("One row a method: what is taken.", recommendation.COLUMNS, RECOMMENDED),
    }  # fmt: skip


def meaning(column: str, said: dict[str, str]) -> str:
    """The sentence of a column.

    Args:
        said: the sentences of the table's own columns; bounds, reasons, changes and tests follow from their names.
    Raises:
        KeyError: nothing says what the column is.
    """
    if column in said:
        return said[column]
    for end, words in (("_low", "Lower end"), ("_high", "Upper end")):
        if column.endswith(end) and meaning(column.removesuffix(end), said):
            return f"{words} of the 95 % interval of `{column.removesuffix(end)}`."
    if column.removeprefix("solver_") in TESTED:
        against = "the best of its solver" if column.startswith("solver_") else "the best, or of the part before"
        return f"{TESTED[column.removeprefix('solver_')]} Held against {against}."
    shown = {metric.column: metric for metric in tables.METRICS.values()}
    for end, sentence in (
        ("_change", "{}: the difference from the baseline's."),
        ("_difference", "{}: the method's minus the other's."),
        ("_verdict", "{}: what the interval says of the method."),
        ("_reason", "Why there is no value of {}, or no interval."),
    ):
        name = column.removesuffix(end)
        if column.endswith(end) and (name in shown or end == "_verdict"):
            return sentence.format(shown[name].title if name in shown else name.capitalize())
    metric = shown[column]
    unit = f", in {metric.unit}" if metric.unit else ""
    return (
        f"{metric.name[0].upper()}{metric.name[1:]}{unit}; {'more' if metric.higher_is_better else 'less'} is better."
    )


def described() -> Iterable[tuple[str, str, list[tuple[str, str]]]]:
    """(table, what its rows are, [(column, sentence)]) of every table of tables/."""
    for name, (rows, columns, said) in _tables().items():
        yield name, rows, [(column, meaning(column, said)) for column in columns]
