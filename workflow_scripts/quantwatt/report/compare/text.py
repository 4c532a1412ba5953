"""A comparison in Markdown, for a comment on a pull request: regressions first."""

from collections import Counter
from collections.abc import Sequence

from quantwatt.report import markdown, tables
from quantwatt.report.compare.change import NOT_COMPARED, Change
from quantwatt.report.compare.comparison import Comparison
from quantwatt.report.compare.result_folder import Key

QUIET = (tables.EQUAL, tables.UNDECIDED)  # verdicts that are folded away
REFUSED = {
    "cost": "Time, energy and memory are",
    "energy": "Energy is",
    "ratio": "Ratios to the baseline are",
}
NAMES_SHOWN = 4  # rows that are named; of more, their number
HEADS = ("", "model", "sampling", "method", "figure", "earlier", "now", "change", "")


def comparison(found: Comparison) -> str:
    """The whole comparison."""
    counts = Counter("regression" if one.regression else one.verdict for one in found.changes)
    told = ", ".join(f"{n} {what}{'s' * (what == 'regression' and n > 1)}" for what, n in counts.items()) or "nothing"
    lines = [
        f"**quantwatt comparison: {found.outcome}** ({told})",
        "",
        f"Earlier: {markdown.cell(found.earlier)}. Now: {markdown.cell(found.now)}.",
    ]
    for what, why, keys in found.refused:
        lines.append(f"{REFUSED[what]} not compared{_of(keys, found)}: {markdown.cell(why)}.")
    loud = [one for one in found.changes if one.regression or one.verdict not in QUIET]
    none = "No figure changed." if found.changes else "Nothing was compared: the two have no row in common."
    lines += ["", *(changes(loud, HEADS) if loud else [none])]
    for which, keys in (("earlier", found.only_earlier), ("new", found.only_now)):
        if keys:
            lines += ["", f"Only in the {which} result: {', '.join(markdown.cell(' '.join(key)) for key in keys)}."]
    lines += [
        "",
        "What differs beside the figures:" if found.differences else "Nothing else that was recorded differs.",
    ]
    if found.differences:
        rows = [(one.fact, one.earlier, one.now, _of(one.rows, found).strip() or "all") for one in found.differences]
        lines += ["", *markdown.table(("", "earlier", "now", "rows"), rows)]
    quiet = [one for one in found.changes if not one.regression and one.verdict in QUIET]
    if quiet:
        told = ", ".join(f"{n} {what}" for what, n in Counter(one.verdict for one in quiet).items())
        lines += ["", f"<details><summary>{told}</summary>", "", *changes(quiet, HEADS), "", "</details>"]
    return "\n".join(lines) + "\n"


def methods(found: Sequence[Change], results: str, one: str, other: str) -> str:
    """Two methods of one result."""
    one, other, results = map(markdown.cell, (one, other, results))
    told = ", ".join(f"{n} {what}" for what, n in Counter(figure.verdict for figure in found).items())
    lines = [
        f"**{one} against {other}** in {results} ({told}; the verdict is on {one})",
        "",
        "Metrics: in pairs of images of the same prompts and seeds. Energy and time: by the ratios of both to the "
        "baseline, which were measured independently.",
        "",
    ]
    heads = ("", "model", "sampling", "", "figure", other, one, "difference or ratio", "")
    return "\n".join([*lines, *changes(found, heads)]) + "\n"


def changes(found: Sequence[Change], heads: Sequence[str]) -> list[str]:
    """A table of changes, in their order."""
    rows = []
    for one in found:
        apart = None if one.value is None else ("x " if one.is_ratio else "") + _signed(one)
        what = "**regression**" if one.regression else one.verdict
        cells = (one.model, one.sampling, one.method, one.figure, *map(_figure, (one.before, one.after)), apart)
        rows.append((what, *cells, one.note or ("" if one.verdict != NOT_COMPARED else "no interval")))
    return markdown.table(heads, rows)


def _figure(value):
    return None if value is None else markdown.figure(value)


def _signed(one):
    text = markdown.figure(one.value, one.low, one.high)
    return text if one.is_ratio or one.value <= 0 else f"+{text}"


def _of(keys: Sequence[Key], found: Comparison) -> str:
    """Which rows: nothing for all that both results have, else names or their number."""
    every = len({(one.model, one.sampling, one.method) for one in found.changes} | set(keys))
    if len(keys) == every:
        return ""
    if len(keys) <= NAMES_SHOWN:
        return " of " + ", ".join(markdown.cell(" ".join(key)) for key in keys)
    return f" of {len(keys)} of {every} rows"
