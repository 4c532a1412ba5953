"""The answer: what to take, what it saves and at which quality, what else could be taken, and what not."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from quantwatt.report.page.numbers import listed, megabytes, missing, percent, with_bounds
from quantwatt.report.recommendation import COSTS, reasons, recommend
from quantwatt.report.tables import (
    BETTER,
    EQUAL,
    METRICS,
    TOO_NOISY,
    UNCONTROLLED,
    UNDECIDED,
    UNMEASURED,
    WITHIN_CONTROL,
    first_metric,
    first_samplings,
    groups,
    is_real,
    paired_with_value,
)

TOLD = 0.05  # of the baseline's peak memory: a smaller difference is that of two processes
NAMED = 4  # methods that share a reason: more are counted
Segments = list[tuple[str, str]]  # (text, style): style "strong", "em", "code" or ""


def answers(
    summary: pd.DataFrame,
    recommended: Sequence[Mapping[str, Any]] | None = None,
    paying: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What to take for each model, sampling and device, as segments for the template.

    Args:
        recommended: as of `recommendation.recommend`; None: under no limits but those of its own.
        paying: {device: where quantizing pays on it, in a sentence}, for an answer that takes nothing; None: unknown.
    Returns:
        list of {"title", "rows": of the summary, "group": of `recommended` or None, "limits": in words, "quality",
        "steps"}.
        "quality" is None or {"title", "unit", "limit", "is_margin", "milder": whether a larger limit excludes less};
        "steps" are {"strictest", "take", "second": as of `by_limit`, "shown": whether it is the answer under the limit
        given, "sentence", "others": how sure that is, what is second and what not to take}.
    """
    recommended = recommend(summary) if recommended is None else recommended
    shown = first_samplings(summary)
    several = {key for key in ("sampling", "device") if shown[key].dropna().nunique() > 1}
    found = []
    for _, rows in groups(shown):
        first = rows.iloc[0]
        title = " · ".join(
            [str(first["model"]), *(str(first[key]) for key in ("sampling", "device") if key in several)]
        )
        group = next((one for one in recommended if _is_of(one, first)), None)
        found.append({"title": title, "rows": rows, "group": group, **_steps(rows, group, _paying(first, paying))})
    return found


def _paying(row, paying):
    """Where quantizing pays on a row's device, or how to find out."""
    known = (paying or {}).get(str(row["device"]))
    asked = ("make kernels", "code"), (" tells how fast each format is here, by the number of tokens.", "")
    return [(" " + (f"{known} " if known else ""), ""), *asked]


def _steps(rows, group, paying):
    """How the answer moves with the limit of quality; one step where there is no limit to move."""
    by_limit = group and group["by_limit"]
    if not by_limit or len(by_limit["steps"]) < 2:
        told = group and reasons(group["methods"])
        sentence, others = answer(rows, group), _others(rows, group, told, paying)
        step = {"strictest": None, "shown": True, "sentence": sentence, "others": others,
                **{key: group and group[key] for key in ("take", "second")}}  # fmt: skip
        return {"limits": _limits(group, None), "quality": None, "steps": [step]}
    metric = METRICS[by_limit["metric"]]
    milder = by_limit["is_margin"] or not metric.higher_is_better  # a larger limit excludes less
    steps = []
    for step in by_limit["steps"]:
        moved = group | step
        sentence, others = answer(rows, moved), _others(rows, moved, step["reasons"], paying)
        taken = {key: step[key] for key in ("strictest", "take", "second")}
        steps.append({**taken, "shown": False, "sentence": sentence, "others": others})
    holding = (
        step for step in steps
        if step["strictest"] is None
        or (step["strictest"] <= by_limit["limit"] if milder else step["strictest"] >= by_limit["limit"])
    )  # fmt: skip
    next(holding)["shown"] = True
    quality = {"title": metric.title, "unit": metric.unit, "limit": by_limit["limit"], "milder": milder,
               "is_margin": by_limit["is_margin"]}  # fmt: skip
    return {"limits": _limits(group, by_limit["metric"]), "quality": quality, "steps": steps}


def _limits(group, moved):
    """The limits in words, but for the one that the reader moves."""
    return [words for name, words in group["limits"].items() if name != moved] if group else []


def _is_of(group, row):
    return all(group[key] == (None if missing(row[key]) else str(row[key])) for key in ("model", "sampling", "device"))


def answer(rows: pd.DataFrame, group: Mapping[str, Any] | None) -> Segments:
    """The sentence for one model and sampling, from its rows of the summary; it states what was not measured."""
    base = rows[rows["baseline"].astype(bool)]
    measured_base = base[is_real(base)]
    if len(base) and (base["status"] == UNMEASURED).all():
        lead = [("No cost was measured", "strong"), (", as the experiment asks", "")]
        return lead + _closest(rows[~rows["baseline"].astype(bool)], base.iloc[0])
    if group is None or measured_base.empty:
        why = base["reason"].dropna().iloc[0] if base["reason"].notna().any() else "it was not measured"
        return [("The baseline has no measurement", "strong"), (f" ({why}), so nothing can be compared.", "")]
    others = rows[~rows["baseline"].astype(bool)]
    real = others[is_real(others)]
    if real.empty:
        return _only_simulated(others, measured_base.iloc[0])
    lead = [] if real["energy_ratio"].notna().any() else _without_energy(real)
    if group["take"] is None:
        return [*lead, *_nothing(real, group, measured_base)]
    best = real[real["method"] == group["take"]].iloc[0]
    if group["saves"] == "weights":
        smaller = f"{megabytes(best['size_mb'])} instead of {megabytes(measured_base.iloc[0]['size_mb'])}"
        told = f"it saves no energy or time that can be told, but its weights take {smaller}"
        return [*lead, ("Take ", ""), (best["method"], "strong"), (f": {told}", ""),
                *_ending(best, measured_base, weights=False)]  # fmt: skip
    cost, ending = _cost_segments(best, group["saves"], measured_base), _ending(best, measured_base)
    return [*lead, ("Take ", ""), (best["method"], "strong"), (": it ", ""), *cost, *ending]


def _nothing(real, group, measured_base):
    """Why nothing is taken, with the method that comes nearest."""
    if group["nearest"] is not None:
        near = real[real["method"] == group["nearest"]].iloc[0]
        return [("Nothing to take", "strong"), (": no measured method holds the limits. Nearest is ", ""),
                (near["method"], "strong"), (_quality(near) + ".", "")]  # fmt: skip
    shown = _cheapest(real)
    if shown is None:
        return [("Nothing to take", "strong"), (f": {group['why']}.", "")]
    kind, best = shown
    each, model = f"{_noun(kind)} per {best['unit']}", f"the unquantized model ({measured_base['method'].iloc[0]})"
    verdict, several = best[COSTS[kind][1]], len(real) > 1
    lead = f"No measured method saves {_noun(kind)}" if several else f"Quantizing saves no {_noun(kind)}"
    start = [(lead, "strong"), (" that can be told" if verdict == UNDECIDED else "", ""),
             (": the cheapest, " if several else ": ", ""), (best["method"], "strong"),
             (", " if several else " ", "")]  # fmt: skip
    if verdict in (EQUAL, UNDECIDED):
        told = (
            f"equals {model} within {percent(best['margin'])}"
            if verdict == EQUAL
            else f"is not told apart from {model}"
        )
        return [*start, (f"{told} in {each} ({_change(best, kind)})", ""), *_ending(best, measured_base)]
    return [*start, *_cost_segments(best, kind, measured_base), *_ending(best, measured_base)]


def _cheapest(real):
    """(kind of cost, row with the smallest ratio) of the methods that hold a ratio; None where none does."""
    for kind, (ratio, _) in COSTS.items():
        compared = real[real[ratio].notna()]
        if len(compared):
            return kind, compared.loc[compared[ratio].idxmin()]
    return None


def _others(rows, group, reasons, paying):
    """How sure the answer is, what is second, what not to take and why; and where nothing pays, where it would."""
    if group is None or not group["methods"] or (rows["status"] == UNMEASURED).all():
        return []
    taken = rows[rows["method"] == group["take"]]
    segments = _certainty(taken.iloc[0], group["saves"]) if len(taken) and group["saves"] in COSTS else []
    if group["second"]:
        segments += [("Second: ", ""), (group["second"], "strong")]
        second = rows[rows["method"] == group["second"]].iloc[0]
        kind = group["saves"] if group["saves"] in COSTS else "energy"
        if not missing(second[COSTS[kind][0]]):
            segments.append((f", {_noun(kind)} {_change(second, kind)}{_quality(second)}", ""))
        if not missing(second["size_mb"]):
            segments.append((f", weights of {megabytes(second['size_mb'])}", ""))
        segments.append((". ", ""))
    for place, (reason, names) in enumerate(reasons.items()):
        few = names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
        segments += [("" if place else "Not: ", ""), (listed(few), "strong")]
        segments.append((f" ({reason})" + ("; " if place < len(reasons) - 1 else "."), ""))
    return segments if group["take"] is not None else segments + paying


def _only_simulated(others, base):
    segments = [("Nothing was saved or measured here", "strong")]
    simulated = others[others["status"] == "simulated"]
    if simulated.empty:
        return [*segments, (f": every quantized method failed on {base['device']}.", "")]
    alone = len(simulated) == len(others)
    outcome = "every quantized method was only simulated" if alone else "every quantized method was simulated or failed"
    segments.append((f": {outcome} on {base['device']}", ""))
    return segments + _closest(simulated, base)


def _closest(methods, base):
    """The words "; the closest in quality, NAME, with ..." for methods whose cost is not known."""
    metric = first_metric(methods)
    if metric is None:
        return [(".", "")]
    values = methods[metric.column]
    best = methods.loc[values.idxmax() if metric.higher_is_better else values.idxmin()]
    segments = [("; the closest in quality, ", ""), (best["method"], "strong"), (_quality(best) or ".", "")]
    if not missing(best["size_mb"]) and not missing(base["size_mb"]):
        text = f", with weights that would take {megabytes(best['size_mb'])} instead of {megabytes(base['size_mb'])}."
        segments.append((text, ""))
    return segments


def _without_energy(real):
    """Why no energy is compared."""
    noisy = (real["verdict"] == TOO_NOISY).any()
    why = real["ratio_reason" if noisy else "energy_reason"].dropna()
    why = f" ({str(why.iloc[0]).rstrip('.')})" if len(why) else ""
    lead = "No energy could be compared" if noisy else "No energy could be read"
    return [(lead, "strong"), (f"{why}. ", "")]


def _noun(kind):
    return "time" if kind == "time" else "energy"


def _is_estimated(row, kind):
    told = row["energy_estimated"]
    return kind == "energy" and not missing(told) and bool(told)  # numpy's true is not True


def _change(row, kind):
    """A ratio as a signed change in percent with its interval, marked where it is estimated."""
    ratio, low, high = (row[f"{COSTS[kind][0]}{end}"] for end in ("", "_low", "_high"))
    estimated = "estimated " if _is_estimated(row, kind) else ""
    return estimated + with_bounds(100 * (ratio - 1), 100 * (low - 1), 100 * (high - 1), signed=True, unit="%")


def _cost_segments(best, kind, measured_base):
    """The words "uses an estimated 20 % [19, 21] less energy per image than the unquantized model (bf16)"."""
    ratio, verdict = best[COSTS[kind][0]], str(best[COSTS[kind][1]])
    low, high = (best[f"{COSTS[kind][0]}{end}"] for end in ("_low", "_high"))
    model = f"the unquantized model ({measured_base['method'].iloc[0]})"
    cheaper = verdict.startswith(BETTER) or (missing(best[COSTS[kind][1]]) and ratio < 1)
    saved = _percent(1 - ratio, 1 - high, 1 - low) if cheaper else _percent(ratio - 1, low - 1, high - 1)
    estimated = _is_estimated(best, kind)
    start = [(("uses" if kind == "energy" else "takes") + (" an " if estimated else " "), "")]
    start += [("estimated", "em"), (" ", "")] if estimated else []
    doubt = ""
    if verdict.endswith(UNCONTROLLED):
        doubt = ", which no measurement of that model against itself confirms"
    size = "less" if cheaper else "more"
    return [*start, (saved, "strong"), (f" {size} {_noun(kind)} per {best['unit']} than {model}{doubt}", "")]


def _percent(value, low, high):
    return with_bounds(100 * value, 100 * low, 100 * high, unit="%")


def _ending(best, measured_base, weights=True):
    return [(_quality(best) + _memory(best, measured_base.iloc[0], weights) + ".", "")]


def _quality(row):
    """The words ", with no visible change (PSNR 52.0 dB [51.1, 53.0])", from the metrics that have values."""
    figures, seen = [], None
    for metric in paired_with_value(row)[:1]:
        text = with_bounds(*(row[f"{metric.column}{end}"] for end in ("", "_low", "_high")), unit=metric.unit)
        figures.append(f"{metric.title} {text}")
        seen = next((words for least, words in metric.words if row[metric.column] >= least), None)
    for metric in METRICS.values():
        change = f"{metric.column}_change"
        if not metric.paired and not missing(row[change]):
            text = with_bounds(row[change], row[f"{change}_low"], row[f"{change}_high"], signed=True)
            figures.append(f"{metric.title} {text}")
            break
    if not figures:
        return ", at a quality that was not scored"
    return f", with {seen} ({'; '.join(figures)})" if seen else f", at a quality of {'; '.join(figures)}"


def _memory(row, base, weights):
    """The words ", and weights of 4.21 MB instead of 14.1 MB", with the peak memory where that differs by more."""
    texts = []
    if weights and not missing(row["size_mb"]) and not missing(base["size_mb"]):
        texts = [f"weights of {megabytes(row['size_mb'])} instead of {megabytes(base['size_mb'])}"]
    if not missing(row["memory_mb"]) and not missing(base["memory_mb"]):
        saved = base["memory_mb"] - row["memory_mb"]
        if abs(saved) > TOLD * base["memory_mb"]:
            texts.append(f"{megabytes(abs(saved))} {'less' if saved > 0 else 'more'} peak memory")
    return f", and {listed(texts)}" if texts else ""


def _certainty(best, kind):
    """How sure a saving is, against what the baseline shows against itself; nothing where no control tells."""
    ratio, cost = COSTS[kind][0], COSTS[kind][0].removesuffix("_ratio")
    control = [best[f"{cost}_control{end}"] for end in ("", "_low", "_high")]
    if any(map(missing, control)) or missing(best[f"{ratio}_high"]):
        return []
    floor = f"what the unquantized model shows against itself, {with_bounds(*control)}"
    verdict = str(best[COSTS[kind][1]])
    if not verdict.startswith(BETTER):
        return []
    if verdict.endswith(WITHIN_CONTROL):
        sure, why = "Not sure", f"lies within {floor}"
    elif best[f"{ratio}_high"] < control[1]:
        sure, why = "Sure", f"lies wholly below {floor}"
    else:
        sure, why = "Fairly sure", f"lies below {floor}, in which its interval ends"
    estimated = "estimated " if _is_estimated(best, kind) else ""
    return [(sure, "strong"), (f": the {estimated}ratio of {_noun(kind)}, {_ratio(best, ratio)}, {why}. ", "")]


def _ratio(row, column):
    return with_bounds(*(row[f"{column}{end}"] for end in ("", "_low", "_high")))
