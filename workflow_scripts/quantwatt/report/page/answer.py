"""The answer in one sentence: what quantization saved, and at which quality."""

import math

import pandas as pd

from quantwatt.report.page.numbers import megabytes, missing, percent, with_bounds
from quantwatt.report.tables import (
    BETTER,
    EQUAL,
    METRICS,
    TOO_NOISY,
    UNCONTROLLED,
    UNDECIDED,
    WITHIN_CONTROL,
    first_metric,
    first_samplings,
    is_real,
    paired_with_value,
)


def answers(summary: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
    """One sentence per model on what quantization saved, as segments for the template.

    Returns:
        list of (model, segments); segments is a list of (text, style), style "strong", "em" or "".
    """
    return [(str(model), answer(rows)) for model, rows in first_samplings(summary).groupby("model", sort=False)]


def answer(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The sentence for one model, from its rows of the summary; it states what was not measured."""
    base = rows[rows["baseline"].astype(bool)]
    measured_base = base[is_real(base)]
    if measured_base.empty:
        why = base["reason"].dropna().iloc[0] if base["reason"].notna().any() else "it was not measured"
        return [("The baseline has no measurement", "strong"), (f" ({why}), so nothing can be compared.", "")]
    others = rows[~rows["baseline"].astype(bool)]
    real = others[is_real(others)]
    if real.empty:
        return _only_simulated(others, measured_base.iloc[0])
    compared = real[real["energy_ratio"].notna()]
    if compared.empty:
        return _without_energy(real, measured_base)
    best = _best(compared, "energy_ratio", "verdict")
    return _cost_segments(best, "energy", compared, measured_base) + _ending(best, rows, measured_base)


def _only_simulated(others, base):
    segments = [("Nothing was saved or measured here", "strong")]
    simulated = others[others["status"] == "simulated"]
    if simulated.empty:
        return [*segments, (f": every quantized method failed on {base['device']}.", "")]
    alone = len(simulated) == len(others)
    outcome = "every quantized method was only simulated" if alone else "every quantized method was simulated or failed"
    segments.append((f": {outcome} on {base['device']}", ""))
    metric = first_metric(simulated)
    if metric is None:
        return [*segments, (".", "")]
    values = simulated[metric.column]
    order = values.idxmax() if metric.higher_is_better else values.idxmin()
    best = simulated.loc[order]
    segments += [("; the closest in quality, ", ""), (best["method"], "strong"), (_quality(best) or ".", "")]
    if not missing(best["size_mb"]) and not missing(base["size_mb"]):
        text = f", with weights that would take {megabytes(best['size_mb'])} instead of {megabytes(base['size_mb'])}."
        segments.append((text, ""))
    return segments


def _without_energy(real, measured_base):
    noisy = (real["verdict"] == TOO_NOISY).any()
    why = real["ratio_reason" if noisy else "energy_reason"].dropna()
    why = f" ({str(why.iloc[0]).rstrip('.')})" if len(why) else ""
    timed = real[real["latency_ratio"].notna()]
    if timed.empty:
        return [("No energy could be compared", "strong"), (f"{why}.", "")]
    best = _best(timed, "latency_ratio", "latency_verdict")
    cost = _cost_segments(best, "latency", timed, measured_base)
    lead = "No energy could be compared" if noisy else "No energy could be read"
    return [(lead, "strong"), (f"{why}. ", ""), *cost, *_ending(best, real, measured_base)]


ORDER = (BETTER, BETTER + WITHIN_CONTROL, BETTER + UNCONTROLLED)  # of what is worth telling


def _best(rows, ratio, verdict):
    """The row with the smallest ratio, of those with the first verdict of ORDER that any has; else of all."""
    chosen = next((told for name in ORDER if not (told := rows[rows[verdict] == name]).empty), rows)
    return chosen.loc[chosen[ratio].idxmin()]


def _cost_segments(best, kind, compared, measured_base):
    """The cost of the best method against the baseline: less, more, equal, or not told apart."""
    noun, verdict = ("energy", best["verdict"]) if kind == "energy" else ("time", best["latency_verdict"])
    each, model = f"{noun} per {best['unit']}", f"the unquantized model ({measured_base['method'].iloc[0]})"
    ratio, low, high = (best[f"{kind}_ratio{end}"] for end in ("", "_low", "_high"))
    estimated = kind == "energy" and best["energy_estimated"] is True
    verb = "uses" if kind == "energy" else "takes"
    if missing(verdict):
        change = with_bounds(100 * (ratio - 1), math.nan, math.nan, signed=True, unit="%")
        return [(best["method"], "strong"), (f"'s {each} differs from that of {model} by ", ""),
                ("an estimated " if estimated else "", "em"), (f"{change}, without an interval", "")]  # fmt: skip
    if verdict in (EQUAL, UNDECIDED):
        what, to = "not told apart", f" from that of {model} ("
        if verdict == EQUAL:
            what, to = "equal", f" to that of {model} within {percent(best['margin'])} ("
        change = with_bounds(100 * (ratio - 1), 100 * (low - 1), 100 * (high - 1), signed=True, unit="%")
        return [(best["method"], "strong"), (f"'s {each} is ", ""), (what, "strong"), (to, ""),
                ("estimated " if estimated else "", "em"), (f"{change})", "")]  # fmt: skip
    if verdict.startswith(BETTER):
        saved = _percent(1 - ratio, 1 - high, 1 - low)
        start = [(best["method"], "strong"), (f" {verb} ", "")]
    else:
        saved = _percent(ratio - 1, low - 1, high - 1)
        lead = "No measured method saves " + noun if len(compared) > 1 else "Quantizing saves no " + noun
        start = [(lead, "strong"), (": the cheapest, " if len(compared) > 1 else ": ", ""), (best["method"], "strong"),
                 (f", {verb} " if len(compared) > 1 else f" {verb} ", "")]  # fmt: skip
    if estimated:
        start += [("an ", ""), ("estimated", "em"), (" ", "")]
    size = "less" if verdict.startswith(BETTER) else "more"
    doubt = ""
    if verdict.endswith(WITHIN_CONTROL):
        doubt = ", though that model against itself differs as much on this machine"
    elif verdict.endswith(UNCONTROLLED):
        doubt = ", which no measurement of that model against itself confirms"
    return [*start, (saved, "strong"), (f" {size} {each} than {model}{doubt}", "")]


def _percent(value, low, high):
    return with_bounds(100 * value, 100 * low, 100 * high, unit="%")


def _ending(best, rows, measured_base):
    base = measured_base[measured_base["sampling"] == best["sampling"]]
    base = base.iloc[0] if len(base) else measured_base.iloc[0]
    text = _quality(best)
    text += _memory(best, base)
    if rows["sampling"].nunique() > 1:
        text += f" ({best['sampling']})"
    return [(text + ".", "")]


def _quality(row):
    """The words ", at ..." with the change in quality, from the metrics that have values."""
    parts = []
    for metric in METRICS.values():
        change = f"{metric.column}_change"
        if not metric.paired and not missing(row[change]):
            text = with_bounds(row[change], row[f"{change}_low"], row[f"{change}_high"], signed=True)
            parts.append(f"a change of the {metric.name} of {text}")
            break
    for metric in paired_with_value(row)[:1]:
        text = with_bounds(*(row[f"{metric.column}{end}"] for end in ("", "_low", "_high")), unit=metric.unit)
        parts.append(f"{_with_article(metric.title)} to the unquantized model's images of {text}")
    return ", at " + " and ".join(parts) if parts else ", at a quality that was not scored"


def _with_article(title):
    """A title with its article, "a PSNR" or "an SSIM": an acronym is pronounced letter by letter."""
    vowels = "AEFHILMNORSX" if title.isupper() else "AEIOUaeiou"
    return f"{'an' if title[0] in vowels else 'a'} {title}"


def _memory(row, base):
    """The words ", and y GB less memory" (or more, or as much), or that the memory is unknown."""
    if missing(row["memory_mb"]) or missing(base["memory_mb"]):
        text = ", with no memory figure"
    else:
        saved = base["memory_mb"] - row["memory_mb"]
        text = f", and {megabytes(abs(saved))} {'less' if saved > 0 else 'more'} peak memory"
    if not missing(row["size_mb"]) and not missing(base["size_mb"]):
        text += f" (weights: {megabytes(row['size_mb'])} instead of {megabytes(base['size_mb'])})"
    return text
