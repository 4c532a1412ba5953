"""An energy label as SVG: joules, their ratio to the unquantized model, and a class where there is one.

It is made of this program's own shapes; of a bundle it holds text alone, which ElementTree escapes.
"""

import math
import textwrap
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from quantwatt.report.book import verdicts
from quantwatt.report.page.numbers import bounds, number

WIDTH, MARGIN, LETTERS = 360, 20, 54  # LETTERS: of a line at the size of SMALL
BODY, SMALL = 13, 11
INK, SOFT, LINE, PAPER, SHADE = "#1b1f24", "#4a525c", "#b9bfc7", "#ffffff", "#dfe3e8"
COLOURS = {"A": "#00674c", "B": "#33691e", "C": "#6d5600", "D": "#4a525c", "E": "#a83c00"}  # white on each: 5:1 or more
WORST = 4.0  # the right end of the scale is at most here; a longer bar is cut, and the scale says so
FONTS = "system-ui, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"


def draw(row: Mapping[str, Any], base: Mapping[str, Any] | None, about: str) -> str | None:
    """The label of a row of the summary as SVG text, 360 units wide; None where no energy was read.

    Args:
        row, base: the method's row, and the unquantized model's or None.
        about: where the figures come from, for the foot.
    """
    joules, ratio = verdicts.interval(row, "energy_j"), verdicts.interval(row, "energy_ratio")
    if joules is None:
        return None
    label = _Label(f"Energy per {row['unit'] or 'image'}")
    label.line(f"{row['model']} · {row['method']}", BODY, weight="600", letters=40)
    label.skip(22)
    label.figure(f"{number(*_shown(joules))} J", verdicts.mark(row))
    label.line(_interval_text(joules), SMALL, SOFT)
    label.skip(10)
    if ratio is not None and not row["baseline"]:
        label.line(f"{number(*_shown(ratio))} × the unquantized model", BODY, weight="600")
        told = verdicts.verdict(row, base, "energy")
        label.line(f"{_interval_text(ratio)}: {told or 'no verdict'}", SMALL, SOFT)
        label.scale(ratio, verdicts.control(base, "energy"))
    found = verdicts.energy_class(row, base)
    label.classes(found)
    label.line(verdicts.RULE, SMALL, SOFT)
    label.skip(6)
    label.line(about, SMALL, SOFT)
    words = f"{number(*_shown(joules))} joules, {verdicts.mark(row)}; class {found.letter or 'none'}"
    return label.text(f"Energy per {row['unit'] or 'image'} of {row['method']}: {words}")


def _shown(interval):
    """Arguments of `numbers.number`: the value, and as many digits as its interval allows."""
    return interval[0], 3, False, interval[1:]


def _interval_text(interval):
    value, low, high = interval
    return f"interval {bounds(low, high, value)}" if not math.isnan(low + high) else "no interval"


class _Label:
    """A column of lines; `y` is where the next one goes."""

    def __init__(self, title):
        self.root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
        self.frame = self._add("rect", x=0.5, y=0.5, width=WIDTH - 1, rx=8, fill=PAPER, stroke=LINE)
        self.y = 14
        self.line(title, 17, weight="700")

    def _add(self, kind, parent=None, **attributes):
        named = {name.replace("_", "-"): f"{v:g}" if isinstance(v, float) else str(v) for name, v in attributes.items()}
        return ElementTree.SubElement(self.root if parent is None else parent, kind, named)

    def write(self, x, y, text, size, fill=INK, **attributes):
        self._add("text", x=x, y=y, font_size=size, fill=fill, **attributes).text = text

    def skip(self, height):
        self.y += height

    def line(self, text, size, fill=INK, weight="400", letters=LETTERS):
        """Write a text, broken into lines."""
        for part in textwrap.wrap(" ".join(text.split()), letters)[:8]:
            self.y += round(size * 1.35)
            self.write(MARGIN, self.y, part, size, fill, font_weight=weight)

    def figure(self, text, mark):
        """Write the largest figure, and how it is known beside it."""
        self.y += 20
        self.write(MARGIN, self.y, text, 34, font_weight="700")
        self.write(WIDTH - MARGIN, self.y, mark.upper(), BODY, text_anchor="end", font_weight="700", letter_spacing=1)
        self.skip(7)

    def scale(self, ratio, control):
        """Draw the ratio's bar and interval from 0 on, the unquantized model at 1, and its ratio to itself in grey."""
        value, low, high = (bound if not math.isnan(bound) else ratio[0] for bound in ratio)
        end = min(max(1.5, high * 1.1), WORST)

        def x(share):
            return MARGIN + (WIDTH - 2 * MARGIN) * min(max(share, 0), end) / end

        top, bottom = self.y + 32, self.y + 56
        if control is not None:
            self._add("rect", x=x(control[1]), y=top - 4, width=x(control[2]) - x(control[1]), height=32, fill=SHADE)
        self._add("rect", x=x(0), y=top, width=x(value) - x(0), height=bottom - top, fill="#0072b2")
        middle = (top + bottom) / 2
        for width, colour in ((6, PAPER), (2.5, INK)):  # a dark line that is seen on the bar, too
            path = f"M{x(low):g} {middle - 7}v14M{x(low):g} {middle}H{x(high):g}M{x(high):g} {middle - 7}v14"
            self._add("path", d=path, stroke=colour, stroke_width=width, fill="none")
        self._add("path", d=f"M{x(1):g} {top - 8}V{bottom + 6}", stroke=INK, stroke_width=1.5, stroke_dasharray="3 2")
        self.write(x(1), top - 11, "1 = unquantized", SMALL, SOFT, text_anchor="middle")
        self.write(x(0), bottom + 14, "0", SMALL, SOFT)
        self.write(
            WIDTH - MARGIN, bottom + 14, f"{end:.2g}{' or more' if high > end else ''}", SMALL, SOFT, text_anchor="end"
        )
        if control is not None:
            self.write(MARGIN, bottom + 29, "grey: the unquantized model against itself", SMALL, SOFT)
        self.y = bottom + (34 if control is not None else 20)

    def classes(self, found):
        """Draw the five letters, the one that was found filled; or say why there is none."""
        self.skip(12)
        side, gap = 26, 6
        for place, (letter, colour) in enumerate(COLOURS.items()):
            x, chosen = MARGIN + place * (side + gap), letter == found.letter
            self._add("rect", x=x, y=self.y, width=side, height=side, rx=4, fill=colour if chosen else PAPER,
                      stroke=colour if chosen else LINE)  # fmt: skip
            self.write(x + side / 2, self.y + 18, letter, 15, PAPER if chosen else SOFT, text_anchor="middle",
                       font_weight="700" if chosen else "400")  # fmt: skip
        left = MARGIN + len(COLOURS) * (side + gap) + 6
        lines = [f"Class {found.letter}"] if found.letter else ["No class:", *textwrap.wrap(found.why, 25)[:2]]
        for place, text in enumerate(lines):
            y = self.y + (18 if len(lines) == 1 else 5 + 13 * place)
            self.write(left, y, text, SMALL if not found.letter else BODY, font_weight="700" if place == 0 else "400")
        self.y += side + 8

    def text(self, title):
        height = self.y + 16
        self.frame.set("height", str(height - 1))
        for name, value in (("viewBox", f"0 0 {WIDTH} {height}"), ("width", WIDTH), ("height", height),
                            ("font-family", FONTS), ("aria-label", title)):  # fmt: skip
            self.root.set(name, str(value))
        heading = ElementTree.Element("title")
        heading.text = title
        self.root.insert(0, heading)
        return ElementTree.tostring(self.root, encoding="unicode")
