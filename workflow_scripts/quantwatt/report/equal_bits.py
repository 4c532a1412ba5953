"""Which format is best at equal bits, and what one change of a method does, from the summary and the pairs' table.

Uniform methods whose layers store as many bits a weight, rounded to an eighth, and whose inputs have as many bits are a
group. In each, every method is held against the best of the group, and against the best of those with its solver and
transforms, where only the format differs.

Two methods that differ in one part alone, the format of weights and inputs, the solver or the transforms, are a change.

Differences and their bootstrap intervals are `method_pairs`'s, of the same prompts and seeds. A p-value takes the
interval as a normal distribution's: that of a bootstrap cannot be smaller than one over its resamples, and Holm's test
of all pairs of a group asks for less. Verdicts are on the method, and hold for all pairs of the group together, or for
all changes of one part together, at 5 %.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from quantwatt.artifacts.manifest import canonical_json
from quantwatt.report import holm, independent, method_pairs, method_words, tables
from quantwatt.report.cells import Cell
from quantwatt.report.tables import BETTER, EQUAL, UNDECIDED, WORSE

ALPHA = 0.05
STEPS = 8  # stored bits are rounded to one over this
NEAR = 0.26  # bits a weight by which two formats may differ and are still compared: a quarter, and a scale per tensor
BEST = "best"
PARTS = ("format", "solver", "transforms")
OTHERS = ("allocation", "dtype", "autocast", "compile")  # settings that must be equal in a change

_DIFFERENCE = ("difference", "difference_low", "difference_high", "p_value", "verdict")
RANKED = [
    *"model sampling bits activation_bits metric rank method format solver transforms weight_bits".split(),
    *"value value_low value_high best".split(), *_DIFFERENCE,
    "best_of_solver", *(f"solver_{name}" for name in _DIFFERENCE),
]  # fmt: skip
CHANGES = [
    *"model sampling activation_bits metric part before after pairs better worse undecided".split(), *_DIFFERENCE
]  # fmt: skip


def formats_table(cells: Sequence[Cell], summary: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The methods of every group of equal bits that has at least two formats, the best first; columns RANKED.

    Args:
        cells: as of `cells.read_cells`; summary, pairs: the tables made from them.
    Returns:
        differences are `method` minus the best, in the metric of the row. The best has none, and the verdict BEST.
    """
    rows = []
    for names, metric, methods, differences, _ in _compared(cells, summary, pairs):
        for _, group in methods.groupby(["bits", "activation_bits"], sort=True):
            if group["format"].nunique() > 1:
                group = group.sort_values("value", ascending=not metric.higher_is_better, kind="stable")
                rows += [{**names, **row} for row in _ranked(group, metric, differences)]
    return pd.DataFrame(rows, columns=RANKED)


def _ranked(group, metric, differences):
    """The rows of one group, which is in order, each held against the best of all and of its solver."""
    tested = _tested(differences, list(itertools.combinations(group["method"][::-1], 2)), metric)
    best, best_of_solver = group["method"].iloc[0], {}
    for rank, row in enumerate(group.to_dict("records"), 1):
        name = row["method"]
        of_solver = best_of_solver.setdefault((row["solver"], row["transforms"]), name)
        yield {**row, "rank": rank, "best": best, "best_of_solver": of_solver,
               **_held(tested, name, best),
               **{f"solver_{key}": value for key, value in _held(tested, name, of_solver).items()}}  # fmt: skip


def _held(tested, name, best):
    return {"verdict": BEST} if name == best else tested.get((name, best), {})


def changes_table(cells: Sequence[Cell], summary: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """What changing one part does, over all pairs of methods that differ in it alone; columns CHANGES.

    Formats are compared where their stored bits differ by NEAR at most, and their inputs have as many bits.

    Args:
        cells, summary, pairs: as of `formats_table`.
    Returns:
        one row per change, with the number of its pairs, and of those that are better, worse or not told apart after.
        The difference is the mean over the pairs, after minus before, with an interval over images; p-values and
        verdicts hold for all rows of a part. Of formats and solvers, `before` is the one that the experiment names
        first, of transforms the shorter list.
    """
    rows = []
    for names, metric, methods, differences, scores in _compared(cells, summary, pairs):
        found = [change for pair in itertools.combinations(methods.to_dict("records"), 2) if (change := _change(*pair))]
        for part in PARTS:
            changed = [(after, before) for name, before, after in found if name == part]
            rows += [{**names, "part": part, **row} for row in _changed(part, changed, scores, differences, metric)]
    return pd.DataFrame(rows, columns=CHANGES)


def _changed(part, changed, scores, differences, metric):
    """The rows of one part, from its pairs [(method after, method before)]."""
    tested = _tested(differences, [(after["method"], before["method"]) for after, before in changed], metric)
    groups: dict[tuple, list[tuple[str, str]]] = {}
    for after, before in changed:
        key = (before[part], after[part], before["activation_bits"])
        groups.setdefault(key, []).append((after["method"], before["method"]))
    pooled = {key: _pooled(*([scores[name] for name in side] for side in zip(*named, strict=True)))
              for key, named in groups.items()}  # fmt: skip
    told = _tested(pooled, list(pooled), metric)
    for key, named in groups.items():
        verdicts = [tested.get(pair, {}).get("verdict") for pair in named]
        yield {
            **dict(zip(("before", "after", "activation_bits"), key, strict=True)), "pairs": len(named),
            "better": verdicts.count(BETTER), "worse": verdicts.count(WORSE),
            "undecided": verdicts.count(UNDECIDED) + verdicts.count(EQUAL), **told.get(key, {}),
        }  # fmt: skip


def _pooled(after, before):
    """(mean difference of two lists of scores, low, high), in pairs of images; NaN where images are not the same."""
    if len({len(score["values"]) for score in (*after, *before)}) > 1:
        return (np.nan,) * 3
    values = np.stack([np.mean([score["values"] for score in side], axis=0) for side in (after, before)], axis=1)
    weights = after[0].get("weights")
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    return method_pairs.difference_of(values, weights, bool(after[0].get("log_values")))


def _change(one, other):
    """(part, method before, method after) of two methods that differ in one part alone; else None."""
    if one["rest"] != other["rest"] or one["activation_bits"] != other["activation_bits"]:
        return None
    [part, *more] = [part for part in PARTS if one[f"{part}_settings"] != other[f"{part}_settings"]] or [None]
    if part is None or more or (part == "format" and abs(one["weight_bits"] - other["weight_bits"]) > NEAR):
        return None
    if part == "transforms" and len(one[f"{part}_settings"]) > len(other[f"{part}_settings"]):
        return part, other, one
    return part, one, other


def _compared(cells, summary, pairs):
    """(names, Metric, methods, differences, scores) of each model and sampling with differences of a metric."""
    settings = {(cell.model, cell.method): cell.checkpoint.get("settings") or {} for cell in cells}
    for (model, sampling), rows in summary.groupby(["model", "sampling"], sort=False):
        here = pairs[(pairs["model"] == model) & (pairs["sampling"] == sampling)]
        columns = {f"{metric.column}_difference": name for name, metric in tables.METRICS.items()}
        name = next((name for column, name in columns.items() if column in here and here[column].notna().any()), None)
        if name is None:
            continue
        metric = tables.METRICS[name]
        rows = rows[(rows["allocation"] == "uniform") & rows[metric.column].notna() & rows["weight_bits"].notna()]
        described = [_method(row, settings[model, row["method"]], metric) for row in rows.to_dict("records")]
        if described:
            scores = {c.method: c.scores.get(name) for c in cells if (c.model, c.sampling) == (model, sampling)}
            names = {"model": model, "sampling": sampling, "metric": metric.title}
            yield names, metric, pd.DataFrame(described), _differences(here, metric), scores


def _method(row, settings, metric):
    """A row of the summary with the parts of its method, as words and as they are set."""
    inputs = settings.get("activations")
    words = {
        "format": " / ".join(map(method_words.format_words, filter(None, [settings["weights"], inputs]))),
        "solver": method_words.plugin_words("solvers", settings["solver"]),
        "transforms": ", ".join(
            method_words.plugin_words("transforms", entry) for entry in settings.get("transforms") or []
        ),
    }
    kept = {"format": [settings["weights"], inputs], "solver": settings["solver"],
            "transforms": settings.get("transforms") or []}  # fmt: skip
    return {
        "method": row["method"], "weight_bits": row["weight_bits"], "bits": round(row["weight_bits"] * STEPS) / STEPS,
        "activation_bits": row["activation_bits"], **words,
        **{f"{part}_settings": canonical_json(entry) for part, entry in kept.items()},
        "rest": canonical_json({key: settings.get(key) for key in OTHERS}),
        **dict(zip(("value", "value_low", "value_high"),
                   (row[f"{metric.column}{end}"] for end in ("", "_low", "_high")), strict=True)),
    }  # fmt: skip


def _differences(pairs, metric):
    """{(method, other): (difference, low, high)} of the pairs' table, each pair in both orders."""
    column = f"{metric.column}_difference"
    named = pairs.loc[pairs[column].notna(), ["method", "other", column, f"{column}_low", f"{column}_high"]]
    found = {}
    for one, other, value, low, high in named.itertuples(index=False):
        found |= {(one, other): (value, low, high), (other, one): (-value, -high, -low)}
    return found


def _tested(differences, pairs, metric):
    """{pair: {column of _DIFFERENCE: value}} of the pairs with an interval; p-values are adjusted for all of these."""
    known = [pair for pair in pairs if np.isfinite(differences.get(pair, np.nan)).all()]
    value, low, high = np.array([differences[pair] for pair in known]).reshape(-1, 3).T
    error = independent.standard_error(low, high, independent.MANY)
    chances = holm.adjusted(np.minimum(1.0, 2 * independent.p_above(np.abs(value), 0.0, error, independent.MANY)))
    return {
        pair: dict(zip(_DIFFERENCE, (*differences[pair], chance, _verdict(differences[pair], chance, metric)),
                       strict=True))
        for pair, chance in zip(known, chances, strict=True)
    }  # fmt: skip


def _verdict(interval, chance, metric):
    if not any(interval):
        return EQUAL
    if chance > ALPHA:
        return UNDECIDED
    return BETTER if (interval[0] > 0) == metric.higher_is_better else WORSE
